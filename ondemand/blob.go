package ondemand

import (
	"context"
	"errors"
	"fmt"
	"sync"
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
	engine   *Engine
	store    Store

	completed chan struct{} // closed when every span is filled

	mu      sync.Mutex
	pending map[int64]*pending // by span
	flights sync.WaitGroup
	closed  bool
}

// pending is one span in flight.
type pending struct {
	flight *flight
	done   chan struct{}
	err    error // set before done is closed
}

// flight is one fetch and those who wait for it.
type flight struct {
	first, last int64
	turn        *turn
	cancel      context.CancelFunc
	waiters     int // guarded by Blob.mu
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

// errAbandoned ends a flight whose last waiter has left.
var errAbandoned = errors.New("nobody waits for the fetch any more")

// Key returns the blob's key.
func (b *Blob) Key() Key { return b.key }

// Path returns the cache file's path. Where a transport has its own store, there
// is no file.
func (b *Blob) Path() string { return b.path }

// Size returns the blob's size in bytes.
func (b *Blob) Size() int64 { return b.size }

// Filled returns how many bytes are filled, up to a span more than there are.
func (b *Blob) Filled() int64 {
	return min(b.size, b.store.Count()*b.spanSize)
}

// FirstHole returns the offset of the first span that is not filled, or the
// size.
func (b *Blob) FirstHole() int64 { return min(b.size, b.store.FirstHole()*b.spanSize) }

// Completed is closed when the blob has no holes left.
func (b *Blob) Completed() <-chan struct{} { return b.completed }

// Complete reports whether the blob has no holes left.
func (b *Blob) Complete() bool {
	select {
	case <-b.completed:
		return true
	default:
		return false
	}
}

// Fill returns when [off, off+n) of the file holds the blob's bytes. A range
// past the blob's end is cut there.
func (b *Blob) Fill(ctx context.Context, off, n int64) error { return b.fill(ctx, off, n, true) }

// FillAhead is Fill for what nobody waits for yet: it goes behind what readers
// wait for.
func (b *Blob) FillAhead(ctx context.Context, off, n int64) error {
	return b.fill(ctx, off, n, false)
}

func (b *Blob) fill(ctx context.Context, off, n int64, urgent bool) error {
	if off < 0 || n <= 0 || off >= b.size {
		return nil
	}
	n = min(n, b.size-off)
	first, last := off/b.spanSize, (off+n-1)/b.spanSize+1
	for {
		wait, err := b.join(first, last, urgent)
		if err == nil {
			err = b.await(ctx, wait)
		}
		if errors.Is(err, errAbandoned) && ctx.Err() == nil {
			continue // we joined just as the last of the others left
		}
		if err != nil {
			return &FillError{b.key, off, n, err}
		}
		return nil
	}
}

// join makes the caller a waiter of a flight for every hole in [first, last),
// starting flights for those that have none.
func (b *Blob) join(first, last int64, urgent bool) ([]*pending, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return nil, ErrClosed
	}
	var wait []*pending
	for span := first; span < last; {
		if b.store.Has(span) {
			span++
			continue
		}
		p := b.pending[span]
		if p == nil {
			end := span + 1
			for end < last && !b.taken(end) && (end+1-span)*b.spanSize <= b.engine.opts.MaxFetch {
				end++
			}
			b.start(span, end, urgent)
			p = b.pending[span]
		}
		if urgent {
			p.flight.turn.hurry()
			b.engine.lastWait.Store(time.Now().UnixNano())
		}
		// One place among the flight's waiters for each of its spans that we
		// want: await leaves as many.
		p.flight.waiters++
		wait = append(wait, p)
		span++
	}
	return wait, nil
}

// start begins a flight for [first, last) and what the source brings with it,
// up to the next spans on either side that are filled or in flight.
func (b *Blob) start(first, last int64, urgent bool) {
	from, to := b.source.Grow(first, last, urgent)
	for from = max(from, 0); first > from && !b.taken(first-1); {
		first--
	}
	for to = min(to, b.spans); last < to && !b.taken(last); {
		last++
	}
	ctx, cancel := context.WithTimeout(context.Background(), b.engine.opts.Timeout)
	f := &flight{first: first, last: last, cancel: cancel, turn: b.engine.budget.queue(urgent)}
	for span := first; span < last; span++ {
		b.pending[span] = &pending{flight: f, done: make(chan struct{})}
	}
	if urgent {
		b.engine.demand.Add(1)
	} else {
		b.engine.ahead.Add(1)
	}
	b.flights.Add(1)
	go b.fly(ctx, f)
}

// taken reports whether a span is filled or in flight.
func (b *Blob) taken(span int64) bool { return b.pending[span] != nil || b.store.Has(span) }

// fly fetches and answers every span of the flight.
func (b *Blob) fly(ctx context.Context, f *flight) {
	defer b.flights.Done()
	defer f.cancel()
	err := f.turn.wait(ctx)
	if err == nil {
		err = b.source.Fetch(ctx, f.first, f.last, func(span int64, data []byte) error {
			if span < f.first || span >= f.last {
				return fmt.Errorf("source brought span %d, asked for [%d,%d)", span, f.first, f.last)
			}
			if err := b.write(span, data); err != nil {
				return err
			}
			b.settle(span, span+1, nil)
			return nil
		})
		f.turn.done()
	}
	b.mu.Lock()
	abandoned := f.waiters == 0
	b.mu.Unlock()
	switch {
	case err != nil && abandoned:
		err = errAbandoned
	case err != nil:
		b.engine.failed.Add(1)
	case err == nil:
		err = errors.New("source ended without an error and without the span")
	}
	b.settle(f.first, f.last, err)
}

func (b *Blob) write(span int64, data []byte) error {
	off := span * b.spanSize
	if int64(len(data)) != min(b.spanSize, b.size-off) {
		return fmt.Errorf("source brought %d bytes for span %d", len(data), span)
	}
	if err := b.store.Put(span, data); err != nil {
		return err
	}
	b.Refresh()
	return nil
}

// Refresh looks at the store again: a transport calls it when the store has
// come to know of spans by itself.
func (b *Blob) Refresh() {
	if b.store.Count() < b.spans {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.Complete() {
		close(b.completed)
	}
}

// settle answers those who wait for spans of [first, last), if that was not done
// before. It is one step: nobody joins what has failed.
func (b *Blob) settle(first, last int64, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for span := first; span < last; span++ {
		p := b.pending[span]
		if p == nil {
			continue
		}
		delete(b.pending, span)
		p.err = err
		close(p.done)
	}
}

// await waits for all of wait, or until one fails, and leaves their flights.
func (b *Blob) await(ctx context.Context, wait []*pending) (err error) {
	for _, p := range wait {
		if err == nil {
			select {
			case <-p.done:
				err = p.err
			case <-ctx.Done():
				err = ctx.Err()
			}
		}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, p := range wait {
		p.flight.waiters--
		if p.flight.waiters == 0 && err != nil {
			p.flight.cancel()
		}
	}
	return err
}

// Sync makes what is filled survive a loss of power.
func (b *Blob) Sync() error { return b.store.Sync() }

// Store returns what the blob's bytes are kept in, for the transport that made
// it.
func (b *Blob) Store() Store { return b.store }

// Allocated is how many bytes of disk the blob takes.
func (b *Blob) Allocated() (int64, error) { return b.store.Allocated() }

// Close ends fetches, waits for them, and closes the file. Fills fail from now
// on.
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
	b.engine.remove(b)
	return b.store.Close()
}
