package ondemand

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// slowOpen is a source that advises, and fetches, when it is open, and whose opening
// takes as long as the gate is shut: it reads an index from a slow disk, or registry.
type slowOpen struct {
	*fakeSource
	gate   chan struct{}
	opened atomic.Bool
	opens  atomic.Int64
}

func (s *slowOpen) Open(ctx context.Context) error {
	s.opens.Add(1)
	select {
	case <-s.gate:
		s.opened.Store(true)
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (s *slowOpen) Grow(first, last int64, _ bool) (int64, int64, bool) {
	return first, last + 1, s.opened.Load()
}

// TestOpenHoldsNobodyUp has a source that takes long to open: readers of what is
// filled, and questions about the blob, are answered meanwhile, and readers of holes
// may give up.
func TestOpenHoldsNobodyUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e, err := New(Options{BootID: bootA})
		if err != nil {
			t.Fatal(err)
		}
		s := &slowOpen{fakeSource: newSource(64 * testSpan), gate: make(chan struct{})}
		b := openGroup(t, e, "a", s)
		if err := b.write(9, s.data[9*testSpan:10*testSpan]); err != nil {
			t.Fatal(err)
		}
		done := make(chan error)
		for range 3 {
			go func() { done <- b.Fill(t.Context(), 0, 1) }()
		}
		synctest.Wait()
		if err := b.Fill(t.Context(), 9*testSpan, testSpan); err != nil {
			t.Error("a filled span:", err)
		}
		if b.Complete() || b.Filled() != testSpan || b.FirstHole() != 0 {
			t.Errorf("%v, %d bytes, hole at %d", b.Complete(), b.Filled(), b.FirstHole())
		}
		hurried, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := b.Fill(hurried, 20*testSpan, 1); !errors.Is(err, context.DeadlineExceeded) {
			t.Error("a reader that gives up:", err)
		}
		close(s.gate)
		for range 3 {
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
		if s.fetches.Load() != 1 || s.missed.Load() != 1 {
			t.Errorf("%d fetches, %d misses", s.fetches.Load(), s.missed.Load())
		}
		// What the source brings with the span it could say only when it was open.
		if !b.backing.Has(1) || b.backing.Has(2) {
			t.Error("the advice was not followed")
		}
		if err := b.Fill(t.Context(), 40*testSpan, 1); err != nil || s.opens.Load() != 2 {
			t.Errorf("%v; opened %d times", err, s.opens.Load())
		}
	})
}

// TestCloseEndsOpening: no source is opened after its blob is closed.
func TestCloseEndsOpening(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e, err := New(Options{BootID: bootA})
		if err != nil {
			t.Fatal(err)
		}
		s := &slowOpen{fakeSource: newSource(4 * testSpan), gate: make(chan struct{})}
		b := openGroup(t, e, "a", s)
		done := make(chan error)
		go func() { done <- b.Fill(t.Context(), 0, 1) }()
		synctest.Wait()
		if err := b.Close(); err != nil {
			t.Error(err)
		}
		close(s.gate)
		if err := <-done; err == nil {
			t.Error("filled a closed blob")
		}
		if s.opened.Load() || s.fetches.Load() != 0 {
			t.Error("the source was used after Close")
		}
	})
}

// TestSuccessIsNoFailure: a source that brings all and then fails has failed nobody,
// and advice that is not followed counts no miss.
func TestSuccessIsNoFailure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSource(4 * testSpan)
		late := lateError{s}
		e, err := New(Options{BootID: bootA})
		if err != nil {
			t.Fatal(err)
		}
		b := openGroup(t, e, "a", late)
		if err := b.Fill(t.Context(), 0, 2*testSpan); err != nil {
			t.Error(err)
		}
		if err := b.FillAhead(t.Context(), 3*testSpan, 1); err != nil {
			t.Error(err)
		}
		synctest.Wait()
		if got := e.Stats(); got != (Stats{Demand: 1, Ahead: 1}) || s.missed.Load() != 1 {
			t.Errorf("%+v, %d misses", got, s.missed.Load())
		}
	})
}

type lateError struct{ *fakeSource }

func (s lateError) Fetch(ctx context.Context, first, last int64, put func(int64, []byte) error) error {
	if err := s.fakeSource.Fetch(ctx, first, last, put); err != nil {
		return err
	}
	return errors.New("the connection broke off behind the last byte")
}
