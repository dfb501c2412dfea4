package cachefiles

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/lacuna-snapshotter/lacuna/ondemand"
)

const blockSize = 4096 // of direct I/O, CACHEFILES_DIO_BLOCK_SIZE

// object is one that the kernel has opened: a descriptor for its cache file,
// until CLOSE.
type object struct {
	id             uint32
	volume, cookie string
	held           bool // for the next daemon

	opened chan struct{} // closed when the OPEN is answered and the backing is bound, or not
	gone   chan struct{} // closed by CLOSE

	mu      sync.RWMutex // held for reading while the descriptor is used
	fd      int          // -1 when closed
	backing *backing     // nil where the keys are unknown
}

var errClosed = errors.New("the kernel has closed the object")

// of reports whether the object is a key's. In v5 there is no domain.
func (o *object) of(key ondemand.Key) bool {
	volume := baseDomain(domain(o.volume))
	return o.cookie == key.Cookie && (volume == "" || volume == key.Volume)
}

// use calls f with the descriptor, which is not closed meanwhile.
func (o *object) use(f func(fd int) error) error {
	o.mu.RLock()
	defer o.mu.RUnlock()
	if o.fd < 0 {
		return errClosed
	}
	return f(o.fd)
}

// bound returns the backing that the object belongs to, nil while there is none.
func (o *object) bound() *backing {
	o.mu.RLock()
	defer o.mu.RUnlock()
	return o.backing
}

// close closes the descriptor when it is not being used.
func (o *object) close() error {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.fd < 0 {
		return nil
	}
	fd := o.fd
	o.fd = -1
	return unix.Close(fd)
}

// buffers are aligned for direct I/O.
var buffers = sync.Pool{New: func() any { return &buffer{} }}

type buffer struct{ raw []byte }

// aligned returns n bytes that start on a block.
func (b *buffer) aligned(n int) []byte {
	if len(b.raw) < n+blockSize {
		b.raw = make([]byte, n+blockSize)
	}
	skip := -uintptr(unsafe.Pointer(unsafe.SliceData(b.raw))) & (blockSize - 1)
	return b.raw[skip : int(skip)+n]
}

// write writes data, which starts on a block, with zeros up to the next one.
func (o *object) write(data []byte, off int64) error {
	b, _ := buffers.Get().(*buffer)
	defer buffers.Put(b)
	p := b.aligned((len(data) + blockSize - 1) / blockSize * blockSize)
	clear(p[copy(p, data):])
	return o.use(func(fd int) error {
		for len(p) > 0 {
			n, err := unix.Pwrite(fd, p, off)
			switch {
			case errors.Is(err, unix.EINTR):
				continue
			case errors.Is(err, unix.ENOBUFS):
				return fmt.Errorf("%w: the cache's file system is below its stop limit", unix.ENOSPC)
			case err != nil:
				return fmt.Errorf("write to the cache: %w", err)
			case n == 0:
				return fmt.Errorf("write to the cache: %w", unix.EIO)
			}
			n = min(n, len(p)) // some kernels count what they padded
			if n%blockSize != 0 {
				return fmt.Errorf("write to the cache: %d bytes of %d: %w", n, len(p), unix.EIO)
			}
			p, off = p[n:], off+int64(n)
		}
		return nil
	})
}

// extents calls f for each run of data, in order, up to size. The kernel answers
// ENOBUFS until it has finished opening the cache file, soon after the reply to
// its OPEN.
func (o *object) extents(ctx context.Context, size int64, f func(from, to int64)) error {
	late := time.After(10 * time.Second)
	for wait := time.Millisecond; ; wait = min(2*wait, 100*time.Millisecond) {
		err := o.use(func(fd int) error { return extents(fd, size, f) })
		if !errors.Is(err, unix.ENOBUFS) {
			return err
		}
		select {
		case <-time.After(wait):
		case <-o.gone:
			return errClosed
		case <-late:
			return err
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func extents(fd int, size int64, f func(from, to int64)) error {
	for at := int64(0); at < size; {
		from, err := unix.Seek(fd, at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			return nil // none behind at
		}
		if err != nil {
			return fmt.Errorf("seek in the cache: %w", err)
		}
		to, err := unix.Seek(fd, from, unix.SEEK_HOLE)
		if err != nil {
			return fmt.Errorf("seek in the cache: %w", err)
		}
		f(from, to)
		at = to
	}
	return nil
}
