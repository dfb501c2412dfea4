package ondemand

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"
)

// Blob is one layer's bytes, which fill up.
type Blob struct {
	key      Key
	path     string
	size     int64
	spanSize int64
	spans    int64
	source   Source
	group    string
	engine   *Engine
	backing  Backing
	durable  atomic.Bool
	checked  atomic.Int64 // when, in Unix nanoseconds

	// syncing is held while the backing syncs or is closed.
	syncing sync.Mutex
	shut    bool // the backing is closed; guarded by syncing

	mu        sync.Mutex
	pending   map[int64]*pending // by span
	completed chan struct{}      // closed when every span is filled
	losses    int                // how often spans have become holes again
	lost      error              // the last time's
	flights   sync.WaitGroup
	closed    bool
}

// FillError says which bytes of which blob could not be had.
type FillError struct {
	Key      Key
	Off, Len int64
	Err      error
}

func (e *FillError) Error() string {
	return fmt.Sprintf("fill %s [%d,%d): %v", e.Key, e.Off, e.Off+e.Len, e.Err)
}

// Unwrap returns the source's or the file's error.
func (e *FillError) Unwrap() error { return e.Err }

// ErrClosed is the cause where a blob was closed.
var ErrClosed = errors.New("blob is closed")

// Key returns the blob's key.
func (b *Blob) Key() Key { return b.key }

// Path returns the cache file's path. Where a transport has its own backing, there
// is no file.
func (b *Blob) Path() string { return b.path }

// Size returns the blob's size in bytes.
func (b *Blob) Size() int64 { return b.size }

// Filled returns how many bytes are filled, up to a span more than there are.
func (b *Blob) Filled() int64 {
	return min(b.size, b.backing.Count()*b.spanSize)
}

// FirstHole returns the offset of the first span that is not filled, or the
// size.
func (b *Blob) FirstHole() int64 { return min(b.size, b.backing.FirstHole()*b.spanSize) }

// Completed is closed when the blob has no holes left. After a LostError it has
// some, and the channel is another one: ask again.
func (b *Blob) Completed() <-chan struct{} {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.completed
}

// Complete reports whether the blob has no holes left. See Durable for whether it
// stays so.
func (b *Blob) Complete() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.isComplete()
}

// isComplete is Complete under mu.
func (b *Blob) isComplete() bool {
	select {
	case <-b.completed:
		return true
	default:
		return false
	}
}

// Refresh looks at the backing again: a transport calls it when the backing has
// come to know of spans by itself.
func (b *Blob) Refresh() {
	if b.backing.Count() < b.spans {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	// Once more: spans may have been lost meanwhile.
	if b.backing.Count() == b.spans && !b.isComplete() {
		close(b.completed)
	}
}

// Sync makes what is filled survive a loss of power. Nil means that every span
// that was filled when Sync was called is durable. After an error only what was
// durable before is sure to be. With a LostError, the rest are holes again, and
// Completed has a fresh channel; with another error, as of a full disk that had
// no room for the record, they are still filled. Sync again later. It returns
// ErrClosed after Close.
func (b *Blob) Sync() error {
	before, _ := b.lostSoFar()
	b.syncing.Lock()
	defer b.syncing.Unlock()
	n, lost := b.lostSoFar()
	switch {
	case b.shut:
		return ErrClosed
	case n != before: // what was filled at the call may be a hole
		return lost
	}
	complete := b.Complete()
	err := b.took(b.backing.Sync())
	if err == nil && complete {
		b.durable.Store(true)
	}
	return err
}

// Durable reports whether the blob has no holes left and a loss of power would
// not change that. From then on it has none until it is closed, whatever the disk
// does: only now may its readers go on without us.
func (b *Blob) Durable() bool { return b.durable.Load() }

// checkEvery is how often Fill asks for errors that the kernel has met by itself.
// Pages that it could not write it drops when it needs their memory, and not
// soon, since they are new; and a daemon that dies while it asks loses what is
// not durable.
const checkEvery = time.Second

// check asks, unless Sync is running, which gets the error itself.
func (b *Blob) check() {
	file, ok := b.backing.(*fileBacking)
	if !ok || b.durable.Load() || time.Now().UnixNano()-b.checked.Load() < int64(checkEvery) || !b.syncing.TryLock() {
		return
	}
	defer b.syncing.Unlock()
	b.checked.Store(time.Now().UnixNano())
	if !b.shut {
		_ = b.took(file.check()) // what is lost is fetched again
	}
}

// took takes note of what a sync or a check of the backing has lost, and returns
// its error.
func (b *Blob) took(err error) error {
	var lost *LostError
	if !errors.As(err, &lost) {
		return err
	}
	b.mu.Lock()
	b.losses, b.lost = b.losses+1, err
	if b.isComplete() {
		b.completed = make(chan struct{})
	}
	b.mu.Unlock()
	b.Refresh() // it may have been filled again already
	return err
}

func (b *Blob) lostSoFar() (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.losses, b.lost
}

// Backing returns what the blob's bytes are kept in, for the transport that made
// it.
func (b *Blob) Backing() Backing { return b.backing }

// Allocated is how many bytes of disk the blob takes.
func (b *Blob) Allocated() (int64, error) { return b.backing.Allocated() }

// Close ends fetches, waits for them and for a Sync under way, and closes the
// file. Fills fail from now on. It does not sync.
func (b *Blob) Close() error {
	b.mu.Lock()
	if b.closed {
		b.mu.Unlock()
		return nil
	}
	b.closed = true
	for _, p := range b.pending {
		p.flight.cancel()
	}
	b.mu.Unlock()
	b.flights.Wait()
	b.engine.set(b.key, nil)
	b.syncing.Lock()
	defer b.syncing.Unlock()
	b.shut = true
	err := b.backing.Close()
	b.engine.free(b.key)
	return err
}
