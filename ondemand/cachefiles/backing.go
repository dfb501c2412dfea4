package cachefiles

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lacuna-snapshotter/lacuna/ondemand"
)

// backing is a blob's bytes in the kernel's cache: those of the object that is
// open for the blob's keys at the moment.
type backing struct {
	*ondemand.Bitmap
	key            ondemand.Key
	size, spanSize int64
	find           func() string // the cache file, where there is one: a long search

	mu     sync.Mutex
	file   string        // what find has found
	object *object       // nil while the kernel has none open
	bound  chan struct{} // closed when there is one, scanned
}

func newBacking(key ondemand.Key, size, spanSize int64, find func() string) (*backing, error) {
	if spanSize%blockSize != 0 {
		return nil, fmt.Errorf("spans of %d bytes: cachefiles needs a multiple of %d", spanSize, blockSize)
	}
	return &backing{
		Bitmap: ondemand.NewBitmap((size + spanSize - 1) / spanSize),
		key:    key, size: size, spanSize: spanSize, find: find, bound: make(chan struct{}),
	}, nil
}

// errUnbound says that the kernel has no cache file open.
var errUnbound = errors.New("nothing mounts the layer: the kernel has not opened its cache file")

// bind makes o the backing's object and finds out what it holds.
func (s *backing) bind(ctx context.Context, o *object) error {
	s.mu.Lock()
	s.object = o
	s.Clear()
	s.mu.Unlock()
	err := s.scan(ctx, o)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.object == o && err == nil {
		select {
		case <-s.bound:
		default:
			close(s.bound)
		}
	}
	return err
}

// scan marks the spans that the cache file holds whole.
func (s *backing) scan(ctx context.Context, o *object) error {
	var filled []int64
	// The kernel's file is whole blocks; the last span ends with the last one.
	blocks := (s.size + blockSize - 1) / blockSize * blockSize
	err := o.extents(ctx, blocks, func(from, to int64) {
		first := (from + s.spanSize - 1) / s.spanSize
		for span := first; span*s.spanSize < blocks && min((span+1)*s.spanSize, blocks) <= to; span++ {
			filled = append(filled, span)
		}
	})
	if err != nil {
		return err
	}
	for _, span := range filled {
		s.mark(o, span)
	}
	return nil
}

// mark is Set, unless another object has come in o's place.
func (s *backing) mark(o *object, span int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.object == o {
		s.Set(span)
	}
}

// doubt forgets what is filled and scans again: the kernel has asked for spans
// that count as filled.
func (s *backing) doubt(ctx context.Context, o *object) error {
	s.mu.Lock()
	if s.object == o {
		s.Clear()
	}
	s.mu.Unlock()
	return s.scan(ctx, o)
}

// unbind ends the use of o.
func (s *backing) unbind(o *object) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.object == o {
		s.object = nil
		s.Clear()
		s.bound = make(chan struct{})
	}
}

// waitBound returns when the kernel has opened the object and it is scanned.
func (s *backing) waitBound(ctx context.Context, most time.Duration) error {
	s.mu.Lock()
	bound := s.bound
	s.mu.Unlock()
	select {
	case <-bound:
		return nil
	case <-time.After(most):
		return errUnbound
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Put implements ondemand.Backing.
func (s *backing) Put(span int64, data []byte) error {
	s.mu.Lock()
	o := s.object
	s.mu.Unlock()
	if o == nil {
		return errUnbound
	}
	if err := o.write(data, span*s.spanSize); err != nil {
		return err
	}
	s.mark(o, span)
	return nil
}

// Sync implements ondemand.Backing: writes are direct I/O, see the package's
// comment.
func (s *backing) Sync() error { return nil }

// Allocated implements ondemand.Backing. A cache file has no name until the kernel
// commits it, some time after its first mount; until then what is filled counts.
func (s *backing) Allocated() (int64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for range 2 { // it may have been culled, and be elsewhere by now
		if s.file == "" {
			s.file = s.find()
		}
		var st unix.Stat_t
		switch err := unix.Stat(s.file, &st); {
		case err == nil:
			return st.Blocks * 512, nil // stat(2)'s unit, whatever the file system's is
		case !errors.Is(err, unix.ENOENT): // as for an empty path
			return 0, &os.PathError{Op: "stat", Path: s.file, Err: err}
		}
		s.file = ""
	}
	return s.Count() * s.spanSize, nil
}

// Close implements ondemand.Backing: the cache file stays.
func (s *backing) Close() error { return nil }

// covers reports whether every span of a range counts as filled.
func (s *backing) covers(off, n int64) bool {
	end := min(off+n, s.size)
	for span := off / s.spanSize; span*s.spanSize < end; span++ {
		if !s.Has(span) {
			return false
		}
	}
	return true
}
