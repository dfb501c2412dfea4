package spans

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"testing"

	"github.com/lacuna-snapshotter/lacuna/erofs"
	"github.com/lacuna-snapshotter/lacuna/fetcher/inflate"
	"github.com/lacuna-snapshotter/lacuna/fetcher/layertest"
)

type memWindows map[int][]byte

func (w memWindows) Window(_ context.Context, i int) ([]byte, error) {
	if w[i] == nil {
		return nil, fmt.Errorf("no window %d", i)
	}
	return w[i], nil
}

// fixture is a layer, its blob as erofs lays it out, and its Layer.
type fixture struct {
	tar, packed, blob []byte
	remote            *layertest.Remote
	windows           memWindows
	layer             *Layer
}

func newFixture(t testing.TB, files int, opts BuildOptions) *fixture {
	t.Helper()
	f := &fixture{windows: memWindows{}}
	f.tar = layertest.Tar(t, files, 42)
	f.packed = layertest.Gzip(t, f.tar)
	built, err := Build(t.Context(), bytes.NewReader(f.packed), opts, func(i int, w []byte) error {
		f.windows[i] = w
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	f.blob = make([]byte, built.Map.BlobSize)
	_, err = erofs.ReadTar(t.Context(), bytes.NewReader(f.tar), erofs.Options{Data: func(e erofs.Extent, r io.Reader) error {
		_, err := io.ReadFull(r, f.blob[e.Blob:e.Blob+e.Len])
		return err
	}})
	if err != nil {
		t.Fatal(err)
	}
	f.remote = &layertest.Remote{Data: f.packed}
	f.layer = &Layer{Map: built.Map, Remote: f.remote, Windows: f.windows}
	return f
}

// fetch checks what a fetch of the spans gives.
func (f *fixture) fetch(t *testing.T, first, last int64) {
	t.Helper()
	next := first
	err := f.layer.Fetch(t.Context(), first, last, func(span int64, data []byte) error {
		if span != next {
			t.Fatalf("span %d, expected %d", span, next)
		}
		next++
		from, to := f.layer.Map.span(span)
		if !bytes.Equal(data, f.blob[from:to]) {
			t.Fatalf("span %d has wrong bytes", span)
		}
		return nil
	})
	if err != nil {
		t.Fatalf("fetch [%d,%d): %v", first, last, err)
	}
	if next != last {
		t.Fatalf("fetch [%d,%d) ended at %d", first, last, next)
	}
}

func TestFetch(t *testing.T) {
	for _, opts := range []BuildOptions{
		{},
		{SpanSize: 4096, Spacing: 64 << 10, Grain: 4096},
		{SpanSize: 1 << 20, Spacing: 1 << 20, Grain: 64 << 10},
	} {
		f := newFixture(t, 80, opts)
		n := f.layer.Map.Spans()
		f.fetch(t, 0, n)
		f.fetch(t, n-1, n)
		r := rand.New(rand.NewPCG(1, 1))
		for range 60 {
			first := r.Int64N(n)
			last := first + 1 + r.Int64N(min(n-first, 12))
			f.remote.Reads = nil
			f.fetch(t, first, last)
			if len(f.remote.Reads) > 1 {
				t.Errorf("%d requests for neighbouring spans", len(f.remote.Reads))
			}
			for _, read := range f.remote.Reads {
				if read[1] != f.layer.Map.Fetched(first, last) {
					t.Errorf("read %d bytes, Fetched says %d", read[1], f.layer.Map.Fetched(first, last))
				}
			}
		}
	}
}

func TestWiden(t *testing.T) {
	f := newFixture(t, 60, BuildOptions{SpanSize: 16 << 10})
	m := f.layer.Map
	grown := int64(0)
	for i := range m.Spans() {
		first, last := f.layer.Widen(i, i+1, true)
		if first > i || last < i+1 {
			t.Fatalf("span %d grew to [%d,%d)", i, first, last)
		}
		if m.Fetched(first, i+1) != m.Fetched(i, i+1) {
			t.Errorf("growing %d back to %d costs bytes", i, first)
		}
		if free, end := f.layer.Widen(i, i+1, false); free != first || end != i+1 {
			t.Errorf("span %d grew to [%d,%d), when missed to [%d,%d)", i, free, end, first, last)
		}
		from, _ := m.span(first)
		_, to := m.span(last - 1)
		if s, e, ok := m.streamRange(from, to); ok && m.checkpointBefore(s) < m.checkpointBefore(e-1)-2 {
			t.Errorf("span %d grew over two checkpoints", i)
		}
		grown += last - first - 1
	}
	if grown == 0 {
		t.Error("nothing grew")
	}
	f.fetch(t, 0, 1)
}

func TestBuildRefusesBadLayers(t *testing.T) {
	f := newFixture(t, 20, BuildOptions{})
	flipped := bytes.Clone(f.packed)
	flipped[len(flipped)/2] ^= 1
	for name, packed := range map[string][]byte{
		"empty":     nil,
		"truncated": f.packed[:len(f.packed)/2],
		"corrupt":   flipped,
		"not gzip":  f.tar,
		"not tar":   layertest.Gzip(t, bytes.Repeat([]byte("text "), 10000)),
		"cut tar":   layertest.Gzip(t, f.tar[:len(f.tar)/2]),
	} {
		if _, err := Build(t.Context(), bytes.NewReader(packed), BuildOptions{}, func(int, []byte) error { return nil }); err == nil {
			t.Errorf("%s: no error", name)
		} else if errors.Is(err, context.Canceled) {
			t.Errorf("%s: the cause is lost: %v", name, err)
		}
	}
	boom := errors.New("disk full")
	if _, err := Build(t.Context(), bytes.NewReader(newFixture(t, 50, BuildOptions{}).packed), BuildOptions{}, func(int, []byte) error { return boom }); !errors.Is(err, boom) {
		t.Errorf("window's error: %v", err)
	}
}

// TestFetchNeverGivesWrongBytes damages every part that a fetch relies on.
// Whatever happens, what is put must be right.
func TestFetchNeverGivesWrongBytes(t *testing.T) {
	base := newFixture(t, 40, BuildOptions{SpanSize: 16 << 10, Spacing: 64 << 10})
	n := base.layer.Map.Spans()
	try := func(name string, l *Layer, wantErr error) {
		t.Helper()
		failed := false
		for i := range n {
			err := l.Fetch(t.Context(), i, min(i+3, n), func(span int64, data []byte) error {
				from, to := base.layer.Map.span(span)
				if !bytes.Equal(data, base.blob[from:to]) {
					t.Fatalf("%s: wrong bytes in span %d", name, span)
				}
				return nil
			})
			if err != nil {
				failed = true
				if wantErr != nil && !errors.Is(err, wantErr) && !isDigestError(err) {
					t.Errorf("%s: %v", name, err)
				}
			}
		}
		if !failed {
			t.Errorf("%s: no fetch failed", name)
		}
	}
	change := func(f func(m *Map)) *Layer {
		m := *base.layer.Map
		m.Sections = append([]Section(nil), m.Sections...)
		m.Checkpoints = append([]Checkpoint(nil), m.Checkpoints...)
		m.Stops = append([]PackedOffset(nil), m.Stops...)
		m.Digests = append([]Digest(nil), m.Digests...)
		f(&m)
		return &Layer{Map: &m, Remote: base.remote, Windows: base.windows}
	}
	r := rand.New(rand.NewPCG(3, 3))
	try("span digest", change(func(m *Map) { m.Digests[n/2][0] ^= 1 }), nil)
	try("stream offset", change(func(m *Map) { m.Sections[len(m.Sections)/2].Stream++ }), nil)
	try("checkpoint bit", change(func(m *Map) { m.Checkpoints[3].Bit++ }), nil)
	try("checkpoint place", change(func(m *Map) { m.Checkpoints[3].Stream++ }), nil)
	try("checkpoint's window", change(func(m *Map) { m.Checkpoints[3].Window = false }), nil)
	try("stop too early", change(func(m *Map) {
		for i := range m.Stops {
			m.Stops[i] = m.Stops[i] * 9 / 10
		}
	}), nil)
	for i := range 12 {
		l := change(func(m *Map) {
			c := &m.Checkpoints[1+r.IntN(len(m.Checkpoints)-1)]
			c.Bit += r.Int64N(2000) - 1000
			m.Sections[r.IntN(len(m.Sections))].Stream += StreamOffset(r.Int64N(200))
			if m.Check() != nil {
				*m = *base.layer.Map // the check has caught it
				m.Digests = append([]Digest(nil), m.Digests...)
				m.Digests[0][0] ^= 1
			}
		})
		try(fmt.Sprint("random ", i), l, nil)
	}
	damaged := bytes.Clone(base.packed)
	for i := range 50 {
		damaged[len(damaged)*(i+1)/52] ^= 0x20
	}
	try("layer", &Layer{Map: base.layer.Map, Remote: &layertest.Remote{Data: damaged}, Windows: base.windows}, nil)
	other := memWindows{}
	for i := range base.windows {
		other[i] = make([]byte, inflate.WindowSize)
	}
	try("windows", &Layer{Map: base.layer.Map, Remote: base.remote, Windows: other}, nil)
	down := errors.New("registry down")
	try("registry", &Layer{Map: base.layer.Map, Remote: &layertest.Remote{Err: down}, Windows: base.windows}, down)
}

func isDigestError(err error) bool {
	var d *DigestError
	return errors.As(err, &d)
}

func TestMapCheck(t *testing.T) {
	f := newFixture(t, 100, BuildOptions{})
	for name, change := range map[string]func(*Map){
		"layer":             func(m *Map) { m.Layer = "md5:x" },
		"negative size":     func(m *Map) { m.StreamSize = -1 },
		"huge size":         func(m *Map) { m.BlobSize = 1 << 60 },
		"span size":         func(m *Map) { m.SpanSize = 4097 },
		"grain":             func(m *Map) { m.Grain = 1 },
		"digests":           func(m *Map) { m.Digests = m.Digests[1:] },
		"stops":             func(m *Map) { m.Stops = m.Stops[1:] },
		"stops order":       func(m *Map) { m.Stops[1] = m.Stops[0] - 1 },
		"stops end":         func(m *Map) { m.Stops[len(m.Stops)-1] = PackedOffset(m.PackedSize + 1) },
		"sections order":    func(m *Map) { m.Sections[1].Blob = 0 },
		"sections overlap":  func(m *Map) { m.Sections[0].Len += 4096 },
		"sections end":      func(m *Map) { m.Sections[len(m.Sections)-1].Len = m.BlobSize },
		"first checkpoint":  func(m *Map) { m.Checkpoints = m.Checkpoints[1:] },
		"checkpoints order": func(m *Map) { m.Checkpoints[1].Stream = 0 },
		"checkpoints end":   func(m *Map) { m.Checkpoints[len(m.Checkpoints)-1].Bit = m.PackedSize * 8 },
	} {
		m := *f.layer.Map
		m.Sections = append([]Section(nil), m.Sections...)
		m.Checkpoints = append([]Checkpoint(nil), m.Checkpoints...)
		m.Stops = append([]PackedOffset(nil), m.Stops...)
		if err := m.Check(); err != nil {
			t.Fatal(err)
		}
		change(&m)
		if err := m.Check(); !errors.Is(err, ErrMap) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
