package ondemand

import (
	"errors"
	"log/slog"
	"maps"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
)

// testHolder is the holders of a node, over all its daemons.
type testHolder struct {
	held map[string]bool
	// full is the label for which there is no room, stuck one that is not released.
	full, stuck string
}

func (h *testHolder) Hold(label string, _ int) error {
	if label == h.full {
		return errors.New("no room")
	}
	h.held[label] = true
	return nil
}

func (h *testHolder) Release(label string) error {
	if label == h.stuck {
		return errors.New("stuck")
	}
	delete(h.held, label)
	return nil
}

// adopted is what the next daemon gets.
func (h *testHolder) adopted(t *testing.T) Adopted {
	t.Helper()
	a := Adopted{}
	for label := range h.held {
		a[label] = testFile(t)
	}
	return a
}

func testFile(t *testing.T) *os.File {
	t.Helper()
	f, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// testDriver opens transports that serve nothing.
type testDriver struct {
	t      *testing.T
	name   string
	err    error           // of Open and Adopt
	idle   bool            // nothing of it is mounted
	opened []*testDelegate // all that it has opened
}

type testDelegate struct {
	Transport
	recovered, closed bool
}

func (d *testDelegate) Recover()     { d.recovered = true }
func (d *testDelegate) Close() error { d.closed = true; return nil }

func (d *testDriver) Name() string          { return d.name }
func (d *testDriver) Labels() []string      { return []string{d.name + " table", d.name + " device"} }
func (d *testDriver) Adopts(a Adopted) bool { return a[d.Labels()[1]] != nil }
func (d *testDriver) Idle(Adopted) bool     { return d.idle }
func (d *testDriver) open() (Transport, error) { // also Adopt's
	if d.err != nil {
		return nil, d.err
	}
	d.opened = append(d.opened, &testDelegate{})
	return d.opened[len(d.opened)-1], nil
}

func (d *testDriver) Adopt(_ Node, a Adopted) (Transport, error) {
	for _, label := range d.Labels() {
		a.Take(label).Close()
	}
	return d.open()
}

func (d *testDriver) Open(Node) (Transport, []syscall.Conn, error) {
	t, err := d.open()
	return t, []syscall.Conn{testFile(d.t), testFile(d.t)}, err
}

func testNode(h *testHolder) Node { return Node{Holder: h, Log: slog.New(slog.DiscardHandler)} }

// TestFailedTransportIsNotAdopted has the first transport not be usable, at each step
// of its opening. The next daemon adopts the one that was used.
func TestFailedTransportIsNotAdopted(t *testing.T) {
	for name, spoil := range map[string]func(*testDriver, *testHolder){
		"it does not serve":        func(d *testDriver, _ *testHolder) { d.err = errors.New("no") },
		"its table is not held":    func(_ *testDriver, h *testHolder) { h.full = "first table" },
		"its device is not held":   func(_ *testDriver, h *testHolder) { h.full = "first device" },
		"it does not serve, stuck": func(d *testDriver, h *testHolder) { d.err, h.stuck = errors.New("no"), "first table" },
	} {
		t.Run(name, func(t *testing.T) {
			h := &testHolder{held: map[string]bool{}}
			first, second := &testDriver{t: t, name: "first"}, &testDriver{t: t, name: "second"}
			spoil(first, h)
			got, err := Drivers{first, second}.Open(Auto, testNode(h))
			if err != nil {
				t.Fatal(err)
			}
			if got.Transport != Transport(second.opened[0]) || len(got.PassedOver) != 1 || got.Adopted {
				t.Errorf("%+v", got)
			}
			if held := slices.Sorted(maps.Keys(h.held)); !slices.Equal(held, []string{"second device", "second table"}) {
				t.Errorf("held: %q", held)
			}
			for _, d := range first.opened {
				if !d.recovered || !d.closed {
					t.Error("the transport that is not used is left open")
				}
			}
			first.err, h.full = nil, ""
			again, err := Drivers{first, second}.Adopt(Auto, testNode(h), h.adopted(t))
			if err != nil || again == nil || again.Transport != Transport(second.opened[1]) || !again.Adopted {
				t.Errorf("the next daemon: %+v, %v", again, err)
			}
		})
	}
}

// TestFailedTransportThatIsHeld cannot be released: the daemon must not use another.
func TestFailedTransportThatIsHeld(t *testing.T) {
	h := &testHolder{held: map[string]bool{}, full: "first device", stuck: "first table"}
	first, second := &testDriver{t: t, name: "first"}, &testDriver{t: t, name: "second"}
	got, err := Drivers{first, second}.Open(Auto, testNode(h))
	if !errors.Is(err, errHeld) || got != nil || len(second.opened) != 0 {
		t.Errorf("%+v, %v", got, err)
	}
	if !first.opened[0].closed {
		t.Error("the transport that is not used is left open")
	}
}

// TestAdoptReleasesWhatIsOfNoUse has half a transport be held, and what belongs to it.
func TestAdoptReleasesWhatIsOfNoUse(t *testing.T) {
	h := &testHolder{held: map[string]bool{"first table": true, "second device": true, "second table": true}}
	first, second := &testDriver{t: t, name: "first"}, &testDriver{t: t, name: "second"}
	a := h.adopted(t)
	unused := a["first table"]
	got, err := Drivers{first, second}.Adopt(Auto, testNode(h), a)
	if err != nil || got == nil || got.Transport != Transport(second.opened[0]) {
		t.Fatalf("%+v, %v", got, err)
	}
	if held := slices.Sorted(maps.Keys(h.held)); !slices.Equal(held, []string{"second device", "second table"}) {
		t.Errorf("held: %q", held)
	}
	if err := unused.Close(); !errors.Is(err, os.ErrClosed) {
		t.Errorf("a file that is of no use is left open: %v", err)
	}
	if len(a) != 0 {
		t.Errorf("not taken: %v", a)
	}
	// Nothing is adopted of transports without a device.
	h = &testHolder{held: map[string]bool{"first table": true, "second table": true, "an object of the second": true}}
	if got, err := (Drivers{first, second}).Adopt(Auto, testNode(h), h.adopted(t)); got != nil || err != nil || len(h.held) != 0 {
		t.Errorf("%+v, %v, held: %v", got, err, h.held)
	}
	h = &testHolder{held: map[string]bool{"second table": true, "second device": true}}
	// Nothing else is adopted where the configuration wants another transport.
	_, err = Drivers{first, second}.Adopt("first", testNode(h), h.adopted(t))
	if err == nil || !strings.Contains(err.Error(), "mounted with transport second") {
		t.Error(err)
	}
}

// TestAdoptsWhatHasMounts has two transports be held, as a start leaves them that failed
// without releasing the first.
func TestAdoptsWhatHasMounts(t *testing.T) {
	all := []string{"first device", "first table", "second device", "second table"}
	for name, c := range map[string]struct {
		first, second bool // idle
		want          string
		adopted       string
		held          []string
	}{
		"the second has mounts":      {true, false, Auto, "second", all[2:]},
		"and is wanted":              {true, false, "second", "second", all[2:]},
		"the first has mounts":       {false, true, Auto, "first", all[:2]},
		"both may have mounts":       {false, false, Auto, "first", all},
		"none has mounts":            {true, true, Auto, "first", all[:2]},
		"none, the second is wanted": {true, true, "second", "second", all[2:]},
		"none, a third is wanted":    {true, true, "third", "", nil},
	} {
		t.Run(name, func(t *testing.T) {
			h := &testHolder{held: map[string]bool{}}
			for _, label := range all {
				h.held[label] = true
			}
			first, second := &testDriver{t: t, name: "first", idle: c.first}, &testDriver{t: t, name: "second", idle: c.second}
			got, err := Drivers{first, second}.Adopt(c.want, testNode(h), h.adopted(t))
			if err != nil {
				t.Fatal(err)
			}
			adopted := ""
			if got != nil {
				adopted = map[bool]string{true: "first", false: "second"}[len(first.opened) == 1]
			}
			if adopted != c.adopted {
				t.Errorf("adopted %q", adopted)
			}
			if held := slices.Sorted(maps.Keys(h.held)); !slices.Equal(held, c.held) {
				t.Errorf("held: %q", held)
			}
		})
	}
}
