package ondemand

import (
	"errors"
	"fmt"
	"io/fs"

	"golang.org/x/sys/unix"

	"github.com/lacuna-snapshotter/lacuna/internal/fault"
)

// Backing is where a blob's bytes are kept, and knows which of its spans are
// there. A transport whose kernel side has a place of its own brings its own
// backing; otherwise it is a file with records beside it.
//
// All methods may be called concurrently, but Sync one at a time, and Close last.
type Backing interface {
	// Has reports whether a span can be read. It does not block.
	Has(span int64) bool
	// Put writes a span's bytes, which it does not keep; then Has is true.
	Put(span int64, data []byte) error
	// Count is how many spans can be read.
	Count() int64
	// FirstHole is the first span that cannot, or how many there are.
	FirstHole() int64
	// Sync makes what was put survive a loss of power. Only with a LostError has
	// it made holes of spans.
	Sync() error
	// Allocated is how many bytes of disk the backing takes.
	Allocated() (int64, error)
	// Close ends the use of the backing, which stays.
	Close() error
}

// fileBacking is a sparse file at a path.
type fileBacking struct {
	path     string
	file     file
	spanSize int64
	*record
}

// ForeignFileError says that the file at a blob's path is not the blob's. It was
// left alone, since a process may have it mounted or mapped. Rename it away, and
// Open makes a new one.
type ForeignFileError struct {
	Path       string
	Size, Want int64 // bytes
}

func (e *ForeignFileError) Error() string {
	return fmt.Sprintf("%s: a file of %d bytes is there, the blob's has %d: rename it away", e.Path, e.Size, e.Want)
}

// openFile opens a blob's file and records.
func openFile(d disk, c BlobConfig, bootID string) (_ *fileBacking, err error) {
	f, err := d.open(c.Path)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			_ = f.Close()
		}
	}()
	size, err := f.size()
	if err != nil {
		return nil, err
	}
	switch size {
	case 0: // new, or emptied
		if err := forget(d, c.Path); err != nil {
			return nil, err
		}
		if err := f.Truncate(c.Size); err != nil {
			return nil, err
		}
	case c.Size:
	default:
		return nil, &ForeignFileError{c.Path, size, c.Size}
	}
	id, err := f.identity()
	if err != nil {
		return nil, err
	}
	r, err := openRecord(d, c.Path, header{c.spans(), c.SpanSize, id, bootID}, f)
	if err != nil {
		return nil, err
	}
	return &fileBacking{c.Path, f, c.SpanSize, r}, nil
}

// forget removes the records of a file that has no bytes, before it gets its
// size: from then on nothing tells it from one that had.
func forget(d disk, path string) error {
	some := false
	for _, name := range []string{runningName, durableName} {
		err := d.remove(path + name)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		some = some || err == nil
	}
	if !some {
		return nil
	}
	return d.syncDir(path)
}

// Put implements Backing. It writes again where the disk has lost spans between the
// bytes and the bit.
func (s *fileBacking) Put(span int64, data []byte) error {
	for {
		mark := s.mark()
		if s.Has(span) {
			return nil
		}
		if _, err := s.file.WriteAt(data, span*s.spanSize); err != nil {
			return err
		}
		fault.Point("span written")
		if ok, err := s.set(span, mark); ok || err != nil {
			return err
		}
	}
}

// Sync implements Backing.
func (s *fileBacking) Sync() error { return s.sync(s.file) }

// check returns a LostError where the kernel has failed to write by itself. It
// comes neither with Sync nor with another check at the same time.
func (s *fileBacking) check() error { return s.record.check(s.file) }

// Allocated implements Backing.
func (s *fileBacking) Allocated() (n int64, err error) {
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

// Close implements Backing. It does not sync: see the package's comment.
func (s *fileBacking) Close() error {
	return errors.Join(s.record.check(s.file), s.record.file.Close(), s.file.Close())
}
