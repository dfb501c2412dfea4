package spans

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"testing"

	"github.com/lacuna-snapshotter/lacuna/fetcher/layertest"
)

// clone copies a map and all its tables.
func clone(m *Map) *Map {
	c := *m
	c.Sections, c.Checkpoints = slices.Clone(m.Sections), slices.Clone(m.Checkpoints)
	c.Stops, c.Digests = slices.Clone(m.Stops), slices.Clone(m.Digests)
	return &c
}

// TestMapPromisesTooMuch has maps that would have a fetch allocate what no layer
// needs. Whether or not their check was asked, it is refused before that.
func TestMapPromisesTooMuch(t *testing.T) {
	f := newFixture(t, 60, BuildOptions{SpanSize: 16 << 10, Spacing: 64 << 10})
	const far = 1 << 40
	for name, change := range map[string]func(m *Map){
		"stops of the last segment at 1 TiB": func(m *Map) {
			m.PackedSize = far
			at := m.Checkpoints[len(m.Checkpoints)-1].Stream
			for i := range m.Stops {
				if StreamOffset(int64(i+1)*m.Grain) > at {
					m.Stops[i] = far
				}
			}
		},
		"only checkpoint, stops at 1 TiB": func(m *Map) {
			m.PackedSize = far
			m.Checkpoints = m.Checkpoints[:1]
			for i := range m.Stops {
				m.Stops[i] = far
			}
		},
		"checkpoints behind 1 TiB": func(m *Map) {
			m.PackedSize = far + f.layer.Map.PackedSize
			for i := range m.Checkpoints[1:] {
				m.Checkpoints[i+1].Bit += far * 8
			}
			for i := range m.Stops {
				m.Stops[i] += far
			}
		},
		"a segment of 1 TiB of stream": func(m *Map) {
			m.BlobSize, m.StreamSize, m.PackedSize, m.SpanSize, m.Grain = far, far, far, maxSpanSize, maxGrain
			m.Sections = []Section{{Len: far}}
			m.Checkpoints = m.Checkpoints[:1]
			m.Digests = make([]Digest, far/maxSpanSize)
			m.Stops = make([]PackedOffset, far/maxGrain)
			for i := range m.Stops {
				m.Stops[i] = PackedOffset(far / len(m.Stops) * (i + 1))
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			m := clone(f.layer.Map)
			change(m)
			if err := m.Check(); !errors.Is(err, ErrMap) {
				t.Errorf("check: %v", err)
			}
			l := &Layer{Map: m, Remote: endless{}, Windows: f.windows}
			last := m.Spans() - 1
			err := l.Fetch(t.Context(), last, last+1, func(int64, []byte) error { return nil })
			if err == nil {
				t.Error("fetch: no error")
			}
		})
	}
}

// endless is a remote that has as much as anybody asks for.
type endless struct{}

func (endless) Open(_ context.Context, _, n int64) io.ReadCloser {
	return io.NopCloser(io.LimitReader(zeros{}, n))
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

// places is a remote with several places that have the layer; the damaged ones are
// asked first.
type places struct {
	data    [][]byte
	at      int
	refused []error
}

func (p *places) Open(_ context.Context, off, n int64) io.ReadCloser {
	return &placeReader{Reader: bytes.NewReader(p.data[p.at][off : off+n]), p: p}
}

type placeReader struct {
	*bytes.Reader
	p *places
}

func (r *placeReader) Close() error { return nil }

func (r *placeReader) Reject(cause error) error {
	r.p.refused = append(r.p.refused, cause)
	if r.p.at+1 == len(r.p.data) {
		return fmt.Errorf("everywhere: %w", cause)
	}
	r.p.at++
	return nil
}

// TestWrongBytesAreAskedForElsewhere damages the layer in some places, in ways that
// inflate notices and in ways that only the digests do.
func TestWrongBytesAreAskedForElsewhere(t *testing.T) {
	f := newFixture(t, 60, BuildOptions{SpanSize: 16 << 10, Spacing: 64 << 10})
	n := f.layer.Map.Spans()
	damaged := func(step int) []byte {
		b := bytes.Clone(f.packed)
		for i := step; i < len(b); i += step {
			b[i] ^= 0x10
		}
		return b
	}
	for _, bad := range [][][]byte{{damaged(40000)}, {damaged(1000)}, {damaged(50000), damaged(70)}, {make([]byte, len(f.packed))}} {
		remote := &places{data: append(bad, f.packed)}
		f.layer.Remote = remote
		f.fetch(t, 0, n) // each span once, in order, with the right bytes
		if len(remote.refused) != len(bad) {
			t.Errorf("%d places refused, want %d", len(remote.refused), len(bad))
		}
	}
	f.layer.Remote = &places{data: [][]byte{damaged(1000), damaged(1001)}}
	err := f.layer.Fetch(t.Context(), 0, n, func(span int64, data []byte) error {
		from, to := f.layer.Map.span(span)
		if !bytes.Equal(data, f.blob[from:to]) {
			t.Errorf("span %d has wrong bytes", span)
		}
		return nil
	})
	if !wrongBytes(err) || len(f.layer.Remote.(*places).refused) != 2 {
		t.Error(err)
	}
	down := &layertest.Remote{Err: errors.New("down")}
	f.layer.Remote = down
	if err := f.layer.Fetch(t.Context(), 0, 1, nil); !errors.Is(err, down.Err) || len(down.Reads) != 1 {
		t.Errorf("an outage: %v after %d reads", err, len(down.Reads))
	}
}
