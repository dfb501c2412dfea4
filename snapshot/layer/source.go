package layer

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/lacuna-snapshotter/lacuna/fetcher/index"
)

// layerSource is a layer's ondemand.Source. Its index, of which the map is large, is
// read with the first hole and dropped when there are none left.
type layerSource struct {
	index   *ownIndex
	reading chan struct{} // holds a token while no fetch reads the index

	mu   sync.Mutex // never held over I/O
	open *openIndex // nil until it is read
}

// openIndex is closed when it has been replaced and no fetch uses it any more.
type openIndex struct {
	*index.Layer
	fetches sync.WaitGroup
}

func newLayerSource(x *ownIndex) *layerSource {
	s := &layerSource{index: x, reading: make(chan struct{}, 1)}
	s.reading <- struct{}{}
	return s
}

// Open implements ondemand.Opener: it reads the index.
func (s *layerSource) Open(ctx context.Context) error {
	return s.read(ctx, func() bool { return s.current() == nil }, s.index.open)
}

// mend puts another index in the place of one whose windows are damaged.
func (s *layerSource) mend(ctx context.Context, damaged *openIndex) error {
	return s.read(ctx, func() bool { return s.current() == damaged }, s.index.replace)
}

// read opens an index, one fetch at a time, unless another fetch has made that
// needless.
func (s *layerSource) read(ctx context.Context, needed func() bool, open func(context.Context) (*index.Layer, error)) error {
	select {
	case <-s.reading:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { s.reading <- struct{}{} }()
	if !needed() {
		return nil
	}
	l, err := open(ctx)
	if err != nil {
		return err
	}
	s.set(&openIndex{Layer: l})
	return nil
}

func (s *layerSource) current() *openIndex {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.open
}

// use returns the open index for a fetch, which says when it is over, or nil.
func (s *layerSource) use() *openIndex {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.open != nil {
		s.open.fetches.Add(1)
	}
	return s.open
}

// set replaces the open index.
func (s *layerSource) set(l *openIndex) {
	s.mu.Lock()
	old := s.open
	s.open = l
	s.mu.Unlock()
	if old != nil {
		go func() {
			old.fetches.Wait()
			old.Close()
		}()
	}
}

// drop frees what Open took.
func (s *layerSource) drop() { s.set(nil) }

// Grow implements ondemand.Advisor.
func (s *layerSource) Grow(first, last int64, missed bool) (from, to int64, ok bool) {
	l := s.current()
	if l == nil {
		return first, last, false
	}
	return l.Grow(first, last, missed)
}

// Missed implements ondemand.Advisor.
func (s *layerSource) Missed(first, last int64) {
	if l := s.current(); l != nil {
		l.Missed(first, last)
	}
}

// Fetch implements ondemand.Source. Where the index turns out to be damaged it is
// replaced, and what is missing is fetched with the new one.
func (s *layerSource) Fetch(ctx context.Context, first, last int64, put func(int64, []byte) error) error {
	next := first
	for mended := 0; ; mended++ {
		l, err := s.fetch(ctx, &next, last, put)
		if !errors.Is(err, index.ErrWindows) || mended == mostMends {
			return err
		}
		if merr := s.mend(ctx, l); merr != nil {
			return fmt.Errorf("%w (%w)", err, merr)
		}
	}
}

// mostMends is how many other indexes there may be: the node's store has one, and the
// repository of the image has one.
const mostMends = 2

// fetch fetches from *next on, which it moves past each span that it brings.
func (s *layerSource) fetch(ctx context.Context, next *int64, last int64, put func(int64, []byte) error) (*openIndex, error) {
	if err := s.Open(ctx); err != nil {
		return nil, err
	}
	l := s.use()
	if l == nil {
		return nil, errDropped
	}
	defer l.fetches.Done()
	return l, l.Fetch(ctx, *next, last, func(span int64, data []byte) error {
		err := put(span, data)
		if err == nil {
			*next = span + 1
		}
		return err
	})
}

// errDropped ends a fetch whose layer became complete, or was closed, as it began.
var errDropped = errors.New("the layer's index is not needed any more")
