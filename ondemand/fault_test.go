package ondemand

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

const faultSpans = 9

// openMem opens the blob of a disk, as a daemon does.
func openMem(d *memDisk, boot string, s *fakeSource) (*Engine, *Blob, error) {
	e, err := New(Options{BootID: boot, MaxFetch: 2 * testSpan})
	if err != nil {
		return nil, nil, err
	}
	e.disk = d
	b, err := e.Open(BlobConfig{Key: Key{"v", "c"}, Path: "blob", Size: int64(len(s.data)), SpanSize: testSpan, Source: s})
	return e, b, err
}

// lives are two daemons' lives, whose calls may fail.
func lives(ctx context.Context, d *memDisk, s *fakeSource) {
	for range 2 {
		_, b, err := openMem(d, bootA, s)
		if err != nil {
			continue
		}
		_ = b.Fill(ctx, 0, 3*testSpan)
		_ = b.Sync()
		_ = b.Fill(ctx, 3*testSpan, 3*testSpan)
		_ = b.Sync()
		time.Sleep(checkEvery)
		_ = b.Fill(ctx, 2*testSpan, 4*testSpan)
		time.Sleep(checkEvery)
		_ = b.Fill(ctx, 0, int64(len(s.data)))
		_ = b.Close()
	}
}

// wrong tells which spans count as filled and are not.
func wrong(d *memDisk, b *Blob, s *fakeSource) error {
	got := d.names["blob"].cache
	for i := range b.spans {
		end := min((i+1)*testSpan, int64(len(s.data)))
		if b.backing.Has(i) && !bytes.Equal(got[i*testSpan:end], s.data[i*testSpan:end]) {
			return fmt.Errorf("span %d counts as filled and is wrong", i)
		}
	}
	return nil
}

// goOn opens what a life has left and checks that it is right, can be filled
// and made durable, and is durable then.
func goOn(ctx context.Context, d *memDisk, boot string, s *fakeSource, r *rand.Rand) error {
	d.restart()
	_, b, err := openMem(d, boot, s)
	if err != nil {
		return err
	}
	if err := wrong(d, b, s); err != nil {
		return err
	}
	// An error of the life before may be told yet, once for each file.
	for range 3 {
		if err := b.Fill(ctx, 0, int64(len(s.data))); err != nil {
			return err
		}
		if err := wrong(d, b, s); err != nil || b.Filled() != b.Size() {
			return fmt.Errorf("filled again, %d bytes: %w", b.Filled(), err)
		}
		if err = b.Sync(); err == nil {
			break
		}
	}
	if err != nil || !b.Durable() {
		return fmt.Errorf("sync: durable %v, %w", b.Durable(), err)
	}
	d = d.powerLoss(r)
	_, b, err = openMem(d, "cccccccc-cccc-cccc-cccc-cccccccccccc", s)
	if err != nil {
		return err
	}
	if err := wrong(d, b, s); err != nil || b.Filled() != b.Size() || !b.Durable() {
		return fmt.Errorf("what was durable, after a loss of power, %d bytes: %w", b.Filled(), err)
	}
	return nil
}

// TestEveryFault has every call that changes something fail in every way, and
// many pairs of them, and looks at what is left: with the process dead and with
// the power lost.
func TestEveryFault(t *testing.T) { synctest.Test(t, everyFault) }

func everyFault(t *testing.T) {
	s := newSource((faultSpans-1)*testSpan + 77)
	clean := newMemDisk()
	lives(t.Context(), clean, s)
	steps := clean.step
	t.Logf("%d calls", steps)
	r := rand.New(rand.NewPCG(1, 2))
	try := func(faults map[int]faultKind) {
		d := newMemDisk()
		d.faults = faults
		lives(t.Context(), d, s)
		for i, way := range []struct {
			d    *memDisk
			boot string
		}{{d.clone(), bootA}, {d.powerLoss(r), bootB}} {
			if err := goOn(t.Context(), way.d, way.boot, s, r); err != nil {
				t.Fatalf("with %v at calls of %d, way %d: %v", faults, steps, i, err)
			}
		}
	}
	const near, stride = 2, 8
	for first := range steps {
		for k := range faultKinds {
			try(map[int]faultKind{first + 1: k})
			for gap := 1; gap < steps; gap++ {
				switch {
				case gap <= near: // all pairs that lie together
					for k2 := range faultKinds {
						try(map[int]faultKind{first + 1: k, first + 1 + gap: k2})
					}
				case r.IntN(stride) == 0:
					try(map[int]faultKind{first + 1: k, first + 1 + gap: faultKind(r.IntN(int(faultKinds)))})
				}
			}
		}
	}
}

// TestFailedSync is the contract of Sync after the disk has lost bytes.
func TestFailedSync(t *testing.T) {
	s := newSource((faultSpans-1)*testSpan + 77)
	d := newMemDisk()
	_, b, err := openMem(d, bootA, s)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(b.Fill(t.Context(), 0, testSpan), b.Sync(), b.Fill(t.Context(), 0, b.Size())); err != nil {
		t.Fatal(err)
	}
	completed := b.Completed()
	<-completed
	// The mark, its sync, and the blob's sync.
	d.faults = map[int]faultKind{d.step + 3: failCall}
	err = b.Sync()
	var lost *LostError
	if !errors.As(err, &lost) || !errors.Is(err, syscall.EIO) || lost.Spans != faultSpans-1 {
		t.Fatal(err)
	}
	if b.Complete() || b.Durable() || b.Filled() != testSpan || b.Completed() == completed {
		t.Errorf("complete %v, durable %v, %d bytes filled", b.Complete(), b.Durable(), b.Filled())
	}
	if err := b.Sync(); err != nil || b.Durable() {
		t.Errorf("with holes: durable %v, %v", b.Durable(), err)
	}
	if err := b.Fill(t.Context(), 0, b.Size()); err != nil {
		t.Fatal(err)
	}
	<-b.Completed()
	if b.Durable() {
		t.Error("durable before a sync")
	}
	if err := errors.Join(b.Sync(), wrong(d, b, s)); err != nil || !b.Durable() {
		t.Errorf("filled again: durable %v, %v", b.Durable(), err)
	}
}

// TestDeathAfterFailedSync: the next daemon does not hear of the error.
func TestDeathAfterFailedSync(t *testing.T) {
	s := newSource((faultSpans-1)*testSpan + 77)
	d := newMemDisk()
	_, b, err := openMem(d, bootA, s)
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Fill(t.Context(), 0, b.Size()); err != nil {
		t.Fatal(err)
	}
	d.faults = map[int]faultKind{d.step + 3: failCall, d.step + 4: die}
	if err := b.Sync(); err == nil {
		t.Fatal("no error")
	}
	d.restart()
	if _, b, err = openMem(d, bootA, s); err != nil || b.Filled() != 0 {
		t.Errorf("%d bytes count as filled, %v", b.Filled(), err)
	}
}

// TestRecordThatCannotBeWrittenBack: the disk takes neither the bytes nor that
// they are lost, and gives an older record back.
func TestRecordThatCannotBeWrittenBack(t *testing.T) {
	s := newSource((faultSpans-1)*testSpan + 77)
	d := newMemDisk()
	_, b, err := openMem(d, bootA, s)
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Fill(t.Context(), 0, b.Size()); err != nil {
		t.Fatal(err)
	}
	d.names["blob"+runningName].disk = bytes.Clone(d.names["blob"+runningName].cache) // the kernel has written it
	// Then the blob's sync fails, and from there each of the record.
	d.faults = map[int]faultKind{}
	for i := range 20 {
		d.faults[d.step+3+i] = failCall
	}
	if err := b.Sync(); err == nil || b.Filled() != 0 {
		t.Fatalf("%d bytes filled, %v", b.Filled(), err)
	}
	if err := b.Fill(t.Context(), 0, testSpan); err == nil {
		t.Error("filled without a record")
	}
	d.names["blob"+runningName].drop() // what it could not write, it forgets
	if err := goOn(t.Context(), d.clone(), bootA, s, rand.New(rand.NewPCG(1, 1))); err != nil {
		t.Error("the next daemon:", err)
	}
	d.restart() // a better disk
	if err := errors.Join(b.Fill(t.Context(), 0, b.Size()), wrong(d, b, s)); err != nil {
		t.Error(err)
	}
	for range 3 { // an error is yet to be told
		if err = errors.Join(b.Fill(t.Context(), 0, b.Size()), b.Sync()); err == nil {
			break
		}
	}
	if err = errors.Join(err, wrong(d, b, s)); err != nil || !b.Durable() {
		t.Errorf("durable %v, %v", b.Durable(), err)
	}
}

// TestBytesWrittenWhileASyncFails: the span's bit comes after the loss.
func TestBytesWrittenWhileASyncFails(t *testing.T) {
	s := newSource(2 * testSpan)
	d := newMemDisk()
	_, b, err := openMem(d, bootA, s)
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Fill(t.Context(), 0, testSpan); err != nil {
		t.Fatal(err)
	}
	file := b.backing.(*fileBacking)
	mark := file.mark()
	if _, err := file.file.WriteAt(s.data[testSpan:], testSpan); err != nil {
		t.Fatal(err)
	}
	d.faults = map[int]faultKind{d.step + 3: failCall}
	if err := b.Sync(); err == nil {
		t.Fatal("no error")
	}
	if ok, err := file.set(1, mark); ok || err != nil || file.Has(1) {
		t.Errorf("the span counts as filled: %v, %v", ok, err)
	}
}

// TestLostWhileAReaderWaits: a part of what a reader wants is filled, and is lost while
// the rest is fetched.
func TestLostWhileAReaderWaits(t *testing.T) {
	for name, lose := range map[string]func(d *memDisk, b *Blob) error{
		"sync": func(d *memDisk, b *Blob) error {
			d.faults = map[int]faultKind{d.step + 3: failCall}
			return b.Sync()
		},
		"kernel": func(d *memDisk, _ *Blob) error {
			d.names["blob"].drop()
			time.Sleep(checkEvery)
			return &LostError{}
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s, d := newSource(2*testSpan), newMemDisk()
				_, b, err := openMem(d, bootA, s)
				if err != nil {
					t.Fatal(err)
				}
				if err := b.Fill(t.Context(), 0, testSpan); err != nil {
					t.Fatal(err)
				}
				s.hook = func(_ context.Context, first, _ int64) error {
					if first == 0 {
						return nil
					}
					var lost *LostError
					if err := lose(d, b); !errors.As(err, &lost) {
						t.Error("nothing was lost:", err)
					}
					return nil
				}
				if err := b.Fill(t.Context(), 0, 2*testSpan); err != nil {
					t.Fatal(err)
				}
				if !b.Complete() {
					t.Error("the reader goes on, and its first span is a hole")
				}
				if err := errors.Join(wrong(d, b, s), b.Close()); err != nil {
					t.Error(err)
				}
			})
		})
	}
}

// TestLargeFillHasBounds: a fill of all of a large blob, as a prediction may ask for,
// has so many fetches under way, and not one for each of its parts.
func TestLargeFillHasBounds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, gate := newSource(4*fillAtOnce*testSpan), make(chan struct{})
		s.hook = func(context.Context, int64, int64) error { <-gate; return nil }
		_, b := openBlob(t, Options{MaxFetch: testSpan}, s, t.TempDir())
		done := make(chan error)
		go func() { done <- b.FillAhead(t.Context(), 0, b.Size()) }()
		synctest.Wait()
		b.mu.Lock()
		n := len(b.pending)
		b.mu.Unlock()
		if n > fillAtOnce {
			t.Errorf("%d spans are in flight", n)
		}
		close(gate)
		if err := <-done; err != nil || !b.Complete() {
			t.Errorf("complete %v, %v", b.Complete(), err)
		}
	})
}

// TestFullDiskKeepsWhatIsFilled: a durable record that finds no room is no reason
// to fetch again.
func TestFullDiskKeepsWhatIsFilled(t *testing.T) {
	s := newSource(4 * testSpan)
	d := newMemDisk()
	_, b, err := openMem(d, bootA, s)
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Fill(t.Context(), 0, b.Size()); err != nil {
		t.Fatal(err)
	}
	d.faults = map[int]faultKind{d.step + 4: noRoom}
	var lost *LostError
	if err := b.Sync(); !errors.Is(err, syscall.ENOSPC) || errors.As(err, &lost) || b.Durable() || !b.Complete() {
		t.Errorf("durable %v, complete %v, %v", b.Durable(), b.Complete(), err)
	}
	if err := b.Sync(); err != nil || !b.Durable() {
		t.Errorf("with room again: durable %v, %v", b.Durable(), err)
	}
}

// TestTheKernelFailsByItself: nobody has synced.
func TestTheKernelFailsByItself(t *testing.T) {
	for name, then := range map[string]func(t *testing.T, d *memDisk, b *Blob, s *fakeSource) (*Blob, error){
		"fill": func(t *testing.T, _ *memDisk, b *Blob, _ *fakeSource) (*Blob, error) {
			time.Sleep(checkEvery)
			return b, b.Fill(t.Context(), 0, b.Size())
		},
		"close": func(t *testing.T, d *memDisk, b *Blob, s *fakeSource) (*Blob, error) {
			var lost *LostError
			if err := b.Close(); !errors.As(err, &lost) {
				t.Error("close:", err)
			}
			d.names["blob"].errors, d.names["blob"].seen = 0, false // the inode was dropped
			_, b, err := openMem(d, bootA, s)
			return b, err
		},
		"death": func(_ *testing.T, d *memDisk, _ *Blob, s *fakeSource) (*Blob, error) {
			_, b, err := openMem(d, bootA, s)
			return b, err
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s, d := newSource(4*testSpan), newMemDisk()
				_, b, err := openMem(d, bootA, s)
				if err != nil {
					t.Fatal(err)
				}
				if err := b.Fill(t.Context(), 0, b.Size()); err != nil {
					t.Fatal(err)
				}
				d.names["blob"].drop()
				b, err = then(t, d, b, s)
				if err := errors.Join(err, wrong(d, b, s)); err != nil {
					t.Error(err)
				}
			})
		})
	}
}

// TestCloseDoesNotSync: a stop closes hundreds.
func TestCloseDoesNotSync(t *testing.T) {
	s := newSource(4 * testSpan)
	d := newMemDisk()
	e, b, err := openMem(d, bootA, s)
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Fill(t.Context(), 0, b.Size()); err != nil {
		t.Fatal(err)
	}
	if n := d.syncsOf(func() { err = b.Close() }); n != 0 || err != nil {
		t.Errorf("%d syncs, %v", n, err)
	}
	if err := b.Sync(); !errors.Is(err, ErrClosed) {
		t.Error(err)
	}
	if e, b, err = openMem(d, bootA, s); err != nil || !b.Complete() {
		t.Fatal("the next daemon does not believe the running record:", err)
	}
	if n := d.syncsOf(func() { err = e.Sync(t.Context()) }); n == 0 || err != nil || !b.Durable() {
		t.Errorf("%d syncs, durable %v, %v", n, b.Durable(), err)
	}
}
