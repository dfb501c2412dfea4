package ondemand

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// pending is one span in flight.
type pending struct {
	flight *flight
	done   chan struct{}
	err    error // set before done is closed
}

// flight is one fetch and those who wait for it.
type flight struct {
	turn   *turn
	cancel context.CancelFunc
	missed bool // a reader has begun it

	// Of the goroutine that flies, once there is one.
	first, last int64
	advised     bool // the source has said what to bring with it

	waiters int // guarded by Blob.mu
}

// fillAtOnce is how many flights of MaxFetch bytes a fill has at once: more than there
// are places, and few enough that the spans in flight of a large blob, and the time that
// it takes to look for its holes, stay small.
const fillAtOnce = 64

// errAbandoned ends a flight whose last waiter has left.
var errAbandoned = errors.New("the last reader that waited for the fetch has left")

// errNotBrought ends the wait for a span that a source has left out.
var errNotBrought = errors.New("the source returned no error and did not bring the span")

// Fill returns when [off, off+n) of the file holds the blob's bytes. A range
// past the blob's end is cut there.
func (b *Blob) Fill(ctx context.Context, off, n int64) error { return b.fill(ctx, off, n, true) }

// FillAhead is Fill for what no reader waits for yet: it goes behind what readers
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
	for holes := true; holes; { // until there are none at once: what is filled may be lost while the rest is fetched
		b.check()
		var err error
		if holes, err = b.fillSpans(ctx, first, last, urgent); err != nil {
			return &FillError{b.key, off, n, err}
		}
	}
	return nil
}

// fillSpans fills the holes in [first, last), and reports whether there were any.
func (b *Blob) fillSpans(ctx context.Context, first, last int64, urgent bool) (holes bool, err error) {
	atOnce := fillAtOnce * max(1, b.engine.opts.MaxFetch/b.spanSize)
	for ; first < last; first += atOnce {
		wait, err := b.join(first, min(last, first+atOnce), urgent)
		if err == nil {
			err = b.await(ctx, wait)
		}
		// Or this call joined just as the last of the others left.
		if err != nil && (!errors.Is(err, errAbandoned) || ctx.Err() != nil) {
			return true, err
		}
		holes = holes || len(wait) > 0
	}
	return holes, nil
}

// join makes the caller a waiter of a flight for every hole in [first, last),
// starting flights for those that have none. After an error it waits for none.
func (b *Blob) join(first, last int64, urgent bool) ([]*pending, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return nil, ErrClosed
	}
	var wait []*pending
	for span := first; span < last; span++ {
		if b.backing.Has(span) {
			continue
		}
		p := b.pending[span]
		if p == nil {
			p = b.start(span, b.gap(span, last), urgent)
		}
		if urgent {
			p.flight.turn.hurry()
			b.engine.lastWait.Store(time.Now().UnixNano())
		}
		// One place among the flight's waiters for each of its spans that we
		// want: await leaves as many.
		p.flight.waiters++
		wait = append(wait, p)
	}
	return wait, nil
}

// gap is the end of the holes from a span on that no flight fetches, at most last
// and at most what one fetch brings.
func (b *Blob) gap(span, last int64) int64 {
	end := span + 1
	for end < last && !b.taken(end) && (end+1-span)*b.spanSize <= b.engine.opts.MaxFetch {
		end++
	}
	return end
}

// start begins a flight for [first, last) and returns the first span's place in it.
// The caller holds mu, here and in what follows.
func (b *Blob) start(first, last int64, urgent bool) *pending {
	ctx, cancel := context.WithCancel(context.Background())
	f := &flight{first: first, last: first, missed: urgent, cancel: cancel, turn: b.engine.budget.queue(b.group, urgent)}
	b.board(f, first, last)
	b.advise(f)
	if urgent {
		b.engine.demand.Add(1)
	} else {
		b.engine.ahead.Add(1)
	}
	b.flights.Add(1)
	go b.fly(ctx, f)
	return b.pending[first]
}

// advise widens a flight by what the source brings with it, and counts the miss.
func (b *Blob) advise(f *flight) {
	a, ok := b.source.(Advisor)
	if !ok {
		f.advised = true
		return
	}
	from, to, ok := a.Grow(f.first, f.last, f.missed)
	if !ok {
		return
	}
	f.advised = true
	if f.missed {
		a.Missed(f.first, f.last)
	}
	b.board(f, from, to)
}

// board widens a flight to [from, to), up to the next spans on either side that are
// filled or in flight.
func (b *Blob) board(f *flight, from, to int64) {
	for from = max(from, 0); f.first > from && !b.taken(f.first-1); {
		f.first--
		b.pending[f.first] = &pending{flight: f, done: make(chan struct{})}
	}
	for to = min(to, b.spans); f.last < to && !b.taken(f.last); f.last++ {
		b.pending[f.last] = &pending{flight: f, done: make(chan struct{})}
	}
}

// taken reports whether a span is filled or in flight.
func (b *Blob) taken(span int64) bool { return b.pending[span] != nil || b.backing.Has(span) }

// fly fetches and answers every span of the flight.
func (b *Blob) fly(ctx context.Context, f *flight) {
	defer b.flights.Done()
	defer f.cancel()
	err := f.turn.wait(ctx)
	if err == nil {
		err = b.fetch(ctx, f)
	}
	f.turn.done()
	if b.finish(f, err) {
		b.engine.failed.Add(1)
	}
}

// fetch is the flight once it has a place. Its time runs from here.
func (b *Blob) fetch(ctx context.Context, f *flight) error {
	ctx, cancel := context.WithTimeout(withTurn(ctx, f.turn), b.engine.opts.Timeout)
	defer cancel()
	if o, ok := b.source.(Opener); ok && !f.advised {
		if err := o.Open(ctx); err != nil {
			return err
		}
		b.mu.Lock()
		b.advise(f)
		b.mu.Unlock()
	}
	first, last := f.first, f.last
	return b.source.Fetch(ctx, first, last, func(span int64, data []byte) error {
		if span < first || span >= last {
			return fmt.Errorf("source brought span %d, asked for [%d,%d)", span, first, last)
		}
		if err := b.write(span, data); err != nil {
			return err
		}
		b.mu.Lock()
		defer b.mu.Unlock()
		b.answer(span, nil)
		return nil
	})
}

func (b *Blob) write(span int64, data []byte) error {
	off := span * b.spanSize
	if int64(len(data)) != min(b.spanSize, b.size-off) {
		return fmt.Errorf("source brought %d bytes for span %d", len(data), span)
	}
	if err := b.backing.Put(span, data); err != nil {
		return err
	}
	b.Refresh()
	return nil
}

// finish answers those who wait for spans of a flight that it has not brought, and
// reports whether there were any, unless the last one had given it up. It is one
// step: no reader joins what has failed.
func (b *Blob) finish(f *flight, err error) (failed bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	abandoned := err != nil && f.waiters == 0
	switch {
	case abandoned:
		err = errAbandoned
	case err == nil:
		err = errNotBrought // for a source that has left spans out
	}
	for span := f.first; span < f.last; span++ {
		if p := b.pending[span]; p != nil && p.flight == f {
			b.answer(span, err)
			failed = !abandoned
		}
	}
	return failed
}

// answer ends the wait for a span, under mu.
func (b *Blob) answer(span int64, err error) {
	p := b.pending[span]
	if p == nil {
		return // a source that brings it twice
	}
	delete(b.pending, span)
	p.err = err
	close(p.done)
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
