package transporttest

import (
	"bytes"
	"errors"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lacuna-snapshotter/lacuna/internal/descriptor"
	"github.com/lacuna-snapshotter/lacuna/internal/hostcheck"
	"github.com/lacuna-snapshotter/lacuna/ondemand"
)

// holder holds duplicates over the transports of a test, as keepers do over daemons.
type holder struct {
	t    *testing.T
	held map[string]*os.File
}

func newHolder(t *testing.T) *holder {
	h := &holder{t, map[string]*os.File{}}
	t.Cleanup(func() {
		for _, f := range h.held {
			f.Close()
		}
	})
	return h
}

func duplicate(fd int, label string) (*os.File, error) {
	own, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	return os.NewFile(uintptr(own), label), err
}

func (h *holder) Hold(label string, fd int) (err error) {
	if old := h.held[label]; old != nil {
		old.Close()
	}
	h.held[label], err = duplicate(fd, label)
	return err
}

func (h *holder) Release(label string) error {
	if f := h.held[label]; f != nil {
		f.Close()
	}
	delete(h.held, label)
	return nil
}

func (h *holder) adopted() ondemand.Adopted {
	a := ondemand.Adopted{}
	for label, f := range h.held {
		err := descriptor.Use(f, func(fd int) (err error) {
			a[label], err = duplicate(fd, label)
			return err
		})
		if err != nil {
			h.t.Fatal(err)
		}
	}
	return a
}

// RunDriver has a transport adopted, as the next daemon does, while a reader waits for
// what the first one could not bring. Driver is for blobs in dir.
func RunDriver(t *testing.T, driver func(dir string) ondemand.Driver) {
	hostcheck.Root(t)
	h := newHolder(t)
	adopted := false
	f := newFixture(t, Kind{New: func(t *testing.T, dir string, engine *ondemand.Engine) ondemand.Transport {
		t.Helper()
		d := driver(dir)
		drivers := ondemand.Drivers{d}
		if a := h.adopted(); d.Adopts(a) && d.Idle(a) {
			t.Error("idle, though a file system is mounted")
		}
		node := ondemand.Node{Engine: engine, Holder: h, Log: slog.New(slog.NewTextHandler(t.Output(), nil))}
		opened, err := drivers.Adopt(ondemand.Auto, node, h.adopted())
		if err == nil && opened == nil {
			opened, err = drivers.Open(ondemand.Auto, node)
		}
		if err != nil {
			t.Fatal(err)
		}
		adopted = opened.Adopted
		return opened.Transport
	}})
	if adopted {
		t.Fatal("adopted, though nothing was held")
	}
	f.transport.Recover()
	l := f.layer("a", 60, 11)
	gate := make(chan struct{})
	l.source.block.Store(&gate)
	path := l.largest()
	type result struct {
		out []byte
		err error
	}
	done := make(chan result, 1)
	go func() {
		out, err := run(exec.CommandContext(t.Context(), "cat", filepath.Join(l.target, path)))
		done <- result{out, err}
	}()
	for l.source.fetches.Load() == 0 {
		time.Sleep(time.Millisecond)
	}
	f.transport.Drain()
	if err := l.blob.Close(); err != nil {
		t.Error(err)
	}
	if err := f.transport.Close(); err != nil {
		t.Error(err)
	}
	l.source.block.Store(nil)

	f.start()
	if !adopted {
		t.Error("what was held is not adopted")
	}
	l.open()
	f.transport.Recover()
	if r := <-done; r.err != nil || !bytes.Equal(r.out, l.files[path]) {
		t.Errorf("the reader got %d bytes of %d, or wrong: %v", len(r.out), len(l.files[path]), r.err)
	}
	l.checkAll()
	l.unmount()
	l.detach()
}

// unable is a holder that has no room for one label.
type unable struct {
	*holder
	label string
}

func (u unable) Hold(label string, fd int) error {
	if label == u.label {
		return errors.New("no room")
	}
	return u.holder.Hold(label, fd)
}

// RunUnheld has a transport be opened of which one descriptor cannot be held. Nothing of
// it is left in the daemon, which may use another.
func RunUnheld(t *testing.T, driver func(dir string) ondemand.Driver) {
	hostcheck.Root(t)
	engine, err := ondemand.New(ondemand.Options{})
	if err != nil {
		t.Fatal(err)
	}
	d := driver(t.TempDir())
	var before []string
	// The first round opens what belongs to the process, such as its poller.
	for i, label := range append(d.Labels()[:1:1], d.Labels()...) {
		h := newHolder(t)
		node := ondemand.Node{Engine: engine, Holder: unable{h, label}, Log: slog.New(slog.NewTextHandler(t.Output(), nil))}
		opened, err := ondemand.Drivers{d}.Open(ondemand.Auto, node)
		if err == nil {
			t.Fatalf("opened %+v", opened)
		}
		if len(h.held) > 0 {
			t.Errorf("held: %v", h.held)
		}
		after := descriptors(t)
		if i > 0 && !slices.Equal(before, after) {
			t.Errorf("without %s: open before: %q, after: %q", label, before, after)
		}
		before = after
	}
}

// descriptors are the files that this process has open, sorted.
func descriptors(t *testing.T) (list []string) {
	t.Helper()
	const dir = "/proc/self/fd"
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if to, err := os.Readlink(filepath.Join(dir, e.Name())); err == nil {
			list = append(list, to)
		}
	}
	slices.Sort(list)
	return list
}
