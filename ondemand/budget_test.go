package ondemand

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// openGroup opens a blob whose fetches share a group's budget.
func openGroup(t *testing.T, e *Engine, group string, s Source) *Blob {
	t.Helper()
	b, err := e.Open(BlobConfig{
		Key: Key{"v", group}, Path: filepath.Join(t.TempDir(), "blob"),
		Size: 64 * testSpan, SpanSize: testSpan, Source: s, Group: group,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	})
	return b
}

// stuck is a source that holds its place until its time is over.
func stuck() *fakeSource {
	s := newSource(64 * testSpan)
	s.hook = func(ctx context.Context, _, _ int64) error { <-ctx.Done(); return ctx.Err() }
	return s
}

// TestDeadHostsLeaveOthersTheirPlace: the healthy one's reader does not wait.
func TestDeadHostsLeaveOthersTheirPlace(t *testing.T) {
	for _, dead := range []int{1, 2, 30} {
		synctest.Test(t, func(t *testing.T) {
			e, err := New(Options{BootID: bootA})
			if err != nil {
				t.Fatal(err)
			}
			for i := range dead {
				b := openGroup(t, e, fmt.Sprint("dead", i), stuck())
				for span := range int64(40) {
					go func() { _ = b.Fill(t.Context(), span*testSpan, 1) }()
					go func() { _ = b.FillAhead(t.Context(), span*testSpan, 1) }()
				}
			}
			synctest.Wait()
			well := openGroup(t, e, "well", newSource(64*testSpan))
			began := time.Now()
			for span := range int64(64) {
				if err := well.Fill(t.Context(), span*testSpan, 1); err != nil {
					t.Error(err)
				}
			}
			if d := time.Since(began); d != 0 {
				t.Errorf("%d dead hosts: readers of a healthy one waited %v", dead, d)
			}
		})
	}
}

// TestPlaces counts the fetches that run at once.
func TestPlaces(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e, err := New(Options{BootID: bootA, Fetches: 8, Background: 4, PerGroup: 6})
		if err != nil {
			t.Fatal(err)
		}
		a, b := stuck(), stuck()
		blobs := []*Blob{openGroup(t, e, "a", a), openGroup(t, e, "b", b)}
		check := func(what string, wantA, wantB int64) {
			t.Helper()
			synctest.Wait()
			if a, b := a.fetches.Load(), b.fetches.Load(); a != wantA || b != wantB {
				t.Errorf("%s: %d and %d fetches, want %d and %d", what, a, b, wantA, wantB)
			}
		}
		ahead := func(b *Blob) {
			for span := range int64(20) {
				go func() { _ = b.FillAhead(t.Context(), span*testSpan, 1) }()
			}
		}
		ahead(blobs[0])
		check("a group's background", 3, 0)
		ahead(blobs[1])
		check("everybody's background", 3, 1)
		for i, b := range blobs {
			for span := range int64(20) {
				go func() { _ = b.Fill(t.Context(), (20+span)*testSpan, 1) }()
			}
			// a: three more to its six, and its own. b: what is left of eight,
			// one, and its own.
			check("readers of "+b.group, 7, []int64{1, 3}[i])
		}
		for _, b := range blobs {
			if err := b.Close(); err != nil {
				t.Error(err)
			}
		}
		if e.budget.free != 8 || e.budget.background != 4 || len(e.budget.groups) != 0 || len(e.budget.round) != 0 {
			t.Errorf("in the end: %+v", e.budget)
		}
	})
}

// TestClockStartsWithThePlace: a queue is no reason to fail.
func TestClockStartsWithThePlace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e, err := New(Options{BootID: bootA, Fetches: 1, MaxFetch: testSpan, Timeout: time.Minute})
		if err != nil {
			t.Fatal(err)
		}
		s := newSource(64 * testSpan)
		s.hook = func(ctx context.Context, _, _ int64) error {
			select {
			case <-time.After(50 * time.Second):
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		b := openGroup(t, e, "a", s)
		if err := b.Fill(t.Context(), 0, 10*testSpan); err != nil {
			t.Error(err)
		}
		// A reader's own patience counts from its call.
		go func() { _ = b.Fill(t.Context(), 20*testSpan, 10*testSpan) }()
		synctest.Wait()
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		if err := b.Fill(ctx, 40*testSpan, 1); !errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
		synctest.Wait()
		if n := len(b.pending); n != 10 {
			t.Errorf("%d spans pending: the reader who has left is still in the queue", n)
		}
	})
}

// TestSleepGivesThePlaceBack: what backs off lets others try.
func TestSleepGivesThePlaceBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e, err := New(Options{BootID: bootA, Fetches: 1, MaxFetch: testSpan, Timeout: time.Hour})
		if err != nil {
			t.Fatal(err)
		}
		s := newSource(64 * testSpan)
		var running, most atomic.Int64
		s.hook = func(ctx context.Context, first, _ int64) error {
			for try := range 3 {
				most.Store(max(most.Load(), running.Add(1)))
				time.Sleep(time.Second) // an attempt
				running.Add(-1)
				if try == 2 {
					break
				}
				if err := Sleep(ctx, time.Minute); err != nil {
					return err
				}
			}
			return nil
		}
		b := openGroup(t, e, "a", s)
		began := time.Now()
		done := make(chan error)
		for span := range int64(20) {
			go func() { done <- b.Fill(t.Context(), span*testSpan, 1) }()
		}
		for range 20 {
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
		// Twenty fetches, three attempts of a second each, two at a time, and
		// everybody's two minutes together.
		if d := time.Since(began); d > 3*time.Minute {
			t.Errorf("it took %v: places were held in back-off", d)
		}
		if most.Load() != 2 {
			t.Errorf("%d attempts at once, want the node's place and the group's", most.Load())
		}
	})
}

// TestSleep is what a source's several requests do in it.
func TestSleep(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		if err := Sleep(t.Context(), time.Second); err != nil {
			t.Error("without a fetch:", err)
		}
		o, err := Options{BootID: bootA, Fetches: 1}.withDefaults()
		if err != nil {
			t.Fatal(err)
		}
		b := newBudget(o)
		turn, other := b.queue("a", false), b.queue("a", false)
		ctx := withTurn(t.Context(), turn)
		if err := turn.wait(ctx); err != nil {
			t.Fatal(err)
		}
		ended, end := context.WithCancel(ctx)
		errs := make(chan error, 3)
		go func() { errs <- Sleep(ctx, time.Second) }()
		go func() { errs <- Sleep(ctx, time.Second) }()
		go func() { errs <- Sleep(ended, time.Hour) }()
		synctest.Wait()
		if err := other.wait(t.Context()); err != nil {
			t.Error(err)
		}
		end()
		if err := <-errs; !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
		time.Sleep(2 * time.Second)
		select {
		case err := <-errs:
			t.Error("went on without a place:", err)
		default:
		}
		other.done()
		for range 2 {
			if err := <-errs; err != nil {
				t.Error(err)
			}
		}
		if b.free != 0 {
			t.Errorf("%d places free while the fetch runs", b.free)
		}
		turn.done()
		if b.free != 1 || len(b.groups) != 0 {
			t.Errorf("in the end: %+v", b)
		}
	})
}

// TestTakenKeyTouchesNoFile: the records are the open blob's.
func TestTakenKeyTouchesNoFile(t *testing.T) {
	d := newMemDisk()
	s := newSource(4 * testSpan)
	e, b, err := openMem(d, bootA, s)
	if err != nil {
		t.Fatal(err)
	}
	before := d.step
	if _, err := e.Open(BlobConfig{Key: b.Key(), Path: "blob", Size: 1, SpanSize: testSpan, Source: s}); !errors.As(err, &ExistsError{}) {
		t.Error(err)
	}
	if d.step != before || len(d.names) != 2 {
		t.Errorf("%d calls, files %v", d.step-before, d.names)
	}
	if err := b.Close(); err != nil {
		t.Error(err)
	}
	if _, err := e.Open(BlobConfig{Key: b.Key(), Path: "blob", Size: b.Size(), SpanSize: testSpan, Source: s}); err != nil {
		t.Error("after close:", err)
	}
}
