package ondemand

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/lacuna-snapshotter/lacuna/internal/fault"
)

// Store is where a blob's bytes are kept, and knows which of its spans are
// there. A transport whose kernel side has a place of its own brings its own
// store; otherwise it is a file with records beside it.
//
// All methods may be called concurrently, but for Close, which is the last.
type Store interface {
	// Has reports whether a span can be read. It does not block.
	Has(span int64) bool
	// Put writes a span's bytes, which it does not keep; then Has is true.
	Put(span int64, data []byte) error
	// Count is how many spans can be read.
	Count() int64
	// FirstHole is the first span that cannot, or how many there are.
	FirstHole() int64
	// Sync makes what was put survive a loss of power.
	Sync() error
	// Allocated is how many bytes of disk the store takes.
	Allocated() (int64, error)
	// Close ends the use of the store, which stays.
	Close() error
}

// fileStore is a sparse file at a path.
type fileStore struct {
	path     string
	file     *os.File
	spanSize int64
	*record
}

// openFile opens a blob's file and records. Those of a file that is not the
// blob's are removed.
func openFile(c BlobConfig, bootID string) (_ *fileStore, err error) {
	f, err := os.OpenFile(c.Path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			f.Close()
		}
	}()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if info.Size() != c.Size {
		if info.Size() != 0 {
			// Not the file that the records were written for.
			for _, name := range []string{runningName, durableName} {
				if err := os.Remove(c.Path + name); err != nil && !os.IsNotExist(err) {
					return nil, err
				}
			}
		}
		if err := errors.Join(f.Truncate(0), f.Truncate(c.Size)); err != nil {
			return nil, err
		}
	}
	r, err := openRecord(c.Path, c.spans(), c.SpanSize, bootID)
	if err != nil {
		return nil, err
	}
	return &fileStore{c.Path, f, c.SpanSize, r}, nil
}

// Put implements Store.
func (s *fileStore) Put(span int64, data []byte) error {
	if _, err := s.file.WriteAt(data, span*s.spanSize); err != nil {
		return err
	}
	fault.Point("span written")
	return s.set(span)
}

// Sync implements Store.
func (s *fileStore) Sync() error { return s.sync(s.file) }

// Allocated implements Store.
func (s *fileStore) Allocated() (n int64, err error) {
	for _, name := range []string{"", runningName, durableName} {
		var st unix.Stat_t
		err := unix.Stat(s.path+name, &st)
		if errors.Is(err, unix.ENOENT) {
			continue // the durable record comes with the first sync
		}
		if err != nil {
			return 0, fmt.Errorf("stat %s: %w", s.path+name, err)
		}
		n += st.Blocks * 512 // stat(2)'s unit, whatever the file system's is
	}
	return n, nil
}

// Close implements Store.
func (s *fileStore) Close() error {
	return errors.Join(s.sync(s.file), s.close(), s.file.Close())
}
