package layer

import (
	"context"
	"fmt"
	"sync"

	"github.com/opencontainers/go-digest"

	"github.com/lacuna-snapshotter/lacuna/fetcher/index"
	"github.com/lacuna-snapshotter/lacuna/fetcher/registry"
)

// layerSource is a layer's ondemand.Source. Its map, the large part, is loaded
// with the first hole and dropped when there are none left.
type layerSource struct {
	state  layerState
	store  *index.Store // the layer's own
	client *registry.Client

	mu   sync.Mutex
	open *index.Layer

	misses misses
}

func (s *layerSource) load() (*index.Layer, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.open != nil {
		return s.open, nil
	}
	head, err := s.store.Head(s.state.Layer)
	if err != nil {
		return nil, err
	}
	if digest.FromBytes(head.Bootstrap) != s.state.Bootstrap || head.Map.SpanSize != s.state.SpanSize || head.Map.BlobSize != s.state.BlobSize {
		return nil, fmt.Errorf("the index of layer %s at %s is not that of the mounted bootstrap: remove the layer's images and pull them again",
			s.state.Layer, s.store.Path(s.state.Layer))
	}
	l, err := s.store.Open(s.client, s.state.Ref, head)
	if err != nil {
		return nil, err
	}
	s.open = l
	return l, nil
}

// Grow implements ondemand.Source. To the layer's own advice it adds what misses
// tell: a file that is missed again and again is read all over, as large
// libraries are.
func (s *layerSource) Grow(first, last int64, missed bool) (int64, int64) {
	l, err := s.load()
	if err != nil {
		return first, last // Fetch will say why
	}
	if missed {
		start, end := l.Map.File(last - 1)
		n := s.misses.add(start)
		last = min(end, last+ahead(n))
		// One miss is often the only one: then the rest of the segment is not
		// worth its bytes.
		missed = n > 1
	}
	return l.Grow(first, last, missed)
}

// misses counts readers' misses by file.
type misses struct {
	mu    sync.Mutex
	count map[int64]int // by the file's first span
}

// add counts a miss and returns how many the file has had.
func (m *misses) add(file int64) int {
	const files = 4096 // counted at once
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.count == nil || len(m.count) > files {
		m.count = map[int64]int{}
	}
	m.count[file]++
	return m.count[file]
}

// ahead is how many spans more to bring with the n-th miss of a file.
func ahead(n int) int64 {
	const (
		calm  = 1  // misses that say nothing yet
		first = 2  // spans with the next one, doubled with each
		most  = 64 // spans
	)
	if n <= calm {
		return 0
	}
	return min(most, int64(first)<<min(n-calm-1, 8))
}

// Fetch implements ondemand.Source.
func (s *layerSource) Fetch(ctx context.Context, first, last int64, put func(int64, []byte) error) error {
	l, err := s.load()
	if err != nil {
		return err
	}
	return l.Fetch(ctx, first, last, put)
}

// drop frees what load took. Fetches must be over.
func (s *layerSource) drop() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.open != nil {
		s.open.Close()
	}
	s.open = nil
}
