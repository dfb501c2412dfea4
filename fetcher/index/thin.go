package index

import (
	"bytes"
	"context"
	"reflect"

	"github.com/klauspost/compress/zstd"

	"github.com/lacuna-snapshotter/lacuna/fetcher/inflate"
	"github.com/lacuna-snapshotter/lacuna/fetcher/spans"
)

// An image's layers are first indexed with checkpoints denser by this factor.
// When the prediction is known, those right before its runs are kept, since
// every byte between a checkpoint and a run is fetched in vain, and of the
// others only as many as the spacing asks for.
const density = 4

// denser are the options for a layer that will be thinned.
func denser(opts spans.BuildOptions) spans.BuildOptions {
	if opts.Spacing == 0 {
		opts.Spacing = spans.DefaultSpacing
	}
	opts.Spacing = max(inflate.MinSpacing, opts.Spacing/density)
	return opts
}

// thin writes the index at path: the dense one with the checkpoints that the runs
// start from, and others about spacing bytes of stream apart. Have, nil where there
// is none, is what is at path already.
func thin(dense, have *made, path string, runs []Run, spacing int64) error {
	h := dense.head
	windows := NewWindows(h, dense.file, nil)
	kept, wanted := keep(h.Map, runs, spacing)
	if have != nil && have.head.has(h, kept, wanted) {
		return nil
	}
	l := levels{head: zstd.SpeedBestCompression, windows: zstd.SpeedBetterCompression}
	return writeIndex(path, l, func(w *groupWriter) (*Head, error) {
		m := *h.Map
		m.Checkpoints = nil
		for _, i := range kept {
			c := h.Map.Checkpoints[i]
			if wanted[i] {
				// By itself: a start fetches this window and not its neighbours'.
				if err := w.cut(len(m.Checkpoints)); err != nil {
					return nil, err
				}
			}
			if c.Window {
				window, err := windows.Window(context.Background(), i)
				if err != nil {
					return nil, err
				}
				if err := w.add(len(m.Checkpoints), window); err != nil {
					return nil, err
				}
			}
			m.Checkpoints = append(m.Checkpoints, c)
			if wanted[i] {
				if err := w.cut(len(m.Checkpoints)); err != nil {
					return nil, err
				}
			}
		}
		return &Head{Map: &m, Bootstrap: h.Bootstrap}, m.Check()
	})
}

// has reports whether a head is the dense one's with just those checkpoints, the
// wanted ones in groups of their own.
func (h *Head) has(dense *Head, kept []int, wanted map[int]bool) bool {
	m := *dense.Map
	m.Checkpoints = nil
	for at, i := range kept {
		m.Checkpoints = append(m.Checkpoints, dense.Map.Checkpoints[i])
		if g, err := h.group(at); wanted[i] && (err != nil || g.Count != 1) {
			return false
		}
	}
	return reflect.DeepEqual(*h.Map, m) && bytes.Equal(h.Bootstrap, dense.Bootstrap)
}

// keep chooses checkpoints, in order, and tells which of them the runs start
// from.
func keep(m *spans.Map, runs []Run, spacing int64) (kept []int, wanted map[int]bool) {
	wanted = map[int]bool{}
	for _, r := range runs {
		if ck, ok := m.CheckpointOf(r.First); ok {
			wanted[ck] = true
		}
	}
	var last spans.StreamOffset
	for i, c := range m.Checkpoints {
		far := i+1 < len(m.Checkpoints) && int64(m.Checkpoints[i+1].Stream-last) > spacing*3/2
		if i == 0 || wanted[i] || far || !c.Window {
			kept = append(kept, i)
			last = c.Stream
		}
	}
	return kept, wanted
}
