package index

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"

	"github.com/lacuna-snapshotter/lacuna/fetcher/registry"
)

// ReadRange fills p from the place of an index at off with bytes that verify accepts, or
// fails. It may call verify for several tries, in other places.
type ReadRange func(ctx context.Context, p []byte, off int64, verify func(p []byte) error) error

// ErrWindows is matched where windows are damaged or missing in the file, and in the
// place that the index came from. Another index of the layer may have them.
var ErrWindows = errors.New("windows of the index are damaged or missing")

// Windows serves the windows of one layer from a local copy of its index. What
// the copy lacks is read from remote and kept: a group is known to be there by
// its digest, so the file may have holes and survive anything.
type Windows struct {
	head   *Head
	file   *os.File
	remote ReadRange // nil where the file is all there is

	mu      sync.Mutex
	loading map[int]*loading // by the group's first checkpoint
	last    *loading         // kept for the neighbours
}

// loading is a group on its way, and the calls that wait for it.
type loading struct {
	done    chan struct{}
	first   int
	windows [][]byte
	err     error
}

// NewWindows serves from file, which it does not close.
func NewWindows(h *Head, file *os.File, remote ReadRange) *Windows {
	return &Windows{head: h, file: file, remote: remote, loading: map[int]*loading{}}
}

// Window implements spans.Windows. A group is fetched once however many ask.
func (w *Windows) Window(ctx context.Context, checkpoint int) ([]byte, error) {
	g, err := w.head.group(checkpoint)
	if err != nil {
		return nil, err
	}
	for {
		f, mine := w.join(g)
		if mine {
			f.windows, f.err = w.load(ctx, g)
			w.leave(f)
		}
		select {
		case <-f.done:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		if f.err == nil {
			return f.windows[checkpoint-g.First], nil
		}
		if mine || ctx.Err() != nil {
			return nil, f.err
		}
		// Another caller's try failed, perhaps because that one gave up.
	}
}

func (w *Windows) join(g Group) (f *loading, mine bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.last != nil && w.last.first == g.First {
		return w.last, false
	}
	if f := w.loading[g.First]; f != nil {
		return f, false
	}
	f = &loading{done: make(chan struct{}), first: g.First}
	w.loading[g.First] = f
	return f, true
}

func (w *Windows) leave(f *loading) {
	w.mu.Lock()
	delete(w.loading, f.first)
	if f.err == nil {
		w.last = f
	}
	w.mu.Unlock()
	close(f.done)
}

func (w *Windows) load(ctx context.Context, g Group) ([][]byte, error) {
	packed := make([]byte, g.Len)
	if _, err := w.file.ReadAt(packed, g.Off); err == nil {
		if windows, err := w.head.unpackGroup(g, packed); err == nil {
			return windows, nil
		}
	}
	if w.remote == nil {
		return nil, fmt.Errorf("%w: %w: those at byte %d of %s", ErrWindows, ErrFormat, g.Off, w.file.Name())
	}
	var windows [][]byte
	err := w.remote(ctx, packed, g.Off, func(packed []byte) (err error) {
		windows, err = w.head.unpackGroup(g, packed)
		return err
	})
	if err != nil {
		err = fmt.Errorf("windows of checkpoints [%d,%d): %w", g.First, g.First+g.Count, err)
		if registry.NotFound(err) || errors.Is(err, ErrFormat) {
			err = fmt.Errorf("%w: %w", ErrWindows, err)
		}
		return nil, err
	}
	_, err = w.file.WriteAt(packed, g.Off)
	return windows, err
}
