package index

import (
	"context"
	"os"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"

	"github.com/lacuna-snapshotter/lacuna/fetcher"
	"github.com/lacuna-snapshotter/lacuna/fetcher/inflate"
)

// An image's layers are first indexed with checkpoints denser by this factor.
// When the prediction is known, those right before its runs are kept, since
// every byte between a checkpoint and a run is fetched in vain, and of the
// others only as many as the spacing asks for.
const density = 4

// denser are the options for a layer that will be thinned.
func denser(opts fetcher.BuildOptions) fetcher.BuildOptions {
	if opts.Spacing == 0 {
		opts.Spacing = fetcher.DefaultSpacing
	}
	opts.Spacing = max(inflate.MinSpacing, opts.Spacing/density)
	return opts
}

// thin rewrites a layer's index with the checkpoints that the runs start from,
// and others about spacing bytes of stream apart.
func thin(store *Store, layer digest.Digest, runs []Run, spacing int64) error {
	h, err := store.Head(layer)
	if err != nil {
		return err
	}
	f, err := os.Open(store.Path(layer))
	if err != nil {
		return err
	}
	defer f.Close()
	windows := NewWindows(h, f, nil)
	kept, wanted := keep(h.Map, runs, spacing)
	l := levels{head: zstd.SpeedBestCompression, windows: zstd.SpeedBetterCompression}
	return writeIndex(store.Path(layer), l, func(w *groupWriter) (*Head, error) {
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

// keep chooses checkpoints, in order, and tells which of them the runs start
// from.
func keep(m *fetcher.Map, runs []Run, spacing int64) (kept []int, wanted map[int]bool) {
	wanted = map[int]bool{}
	for _, r := range runs {
		if ck, ok := m.CheckpointOf(r.First); ok {
			wanted[ck] = true
		}
	}
	var last fetcher.StreamOffset
	for i, c := range m.Checkpoints {
		far := i+1 < len(m.Checkpoints) && int64(m.Checkpoints[i+1].Stream-last) > spacing*3/2
		if i == 0 || wanted[i] || far || !c.Window {
			kept = append(kept, i)
			last = c.Stream
		}
	}
	return kept, wanted
}
