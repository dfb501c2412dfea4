package ondemand

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"syscall"
	"testing"
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
		_ = b.Fill(ctx, 2*testSpan, 4*testSpan)
		_ = b.Fill(ctx, 0, int64(len(s.data)))
		_ = b.Close()
	}
}

// wrong tells which spans count as filled and are not.
func wrong(d *memDisk, b *Blob, s *fakeSource) error {
	got := d.names["blob"].cache
	for i := range b.spans {
		end := min((i+1)*testSpan, int64(len(s.data)))
		if b.store.Has(i) && !bytes.Equal(got[i*testSpan:end], s.data[i*testSpan:end]) {
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
	if err := wrong(d, b, s); err != nil || b.Filled() != b.Size() {
		return fmt.Errorf("what was durable, after a loss of power, %d bytes: %w", b.Filled(), err)
	}
	return nil
}

// TestEveryFault has every call that changes something fail in every way, and
// many pairs of them, and looks at what is left: with the process dead and with
// the power lost.
func TestEveryFault(t *testing.T) {
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
		}{{d.clone(), bootA}, {d.powerLoss(r), bootB}, {d.powerLoss(r), bootB}} {
			if err := goOn(t.Context(), way.d, way.boot, s, r); err != nil {
				t.Fatalf("with %v at calls of %d, way %d: %v", faults, steps, i, err)
			}
		}
	}
	const stride = 4 // of all pairs
	for first := range steps {
		for k := range faultKinds {
			try(map[int]faultKind{first + 1: k})
			for second := first + 1 + r.IntN(stride); second < steps+10; second += stride {
				k2 := faultKind(r.IntN(int(faultKinds)))
				try(map[int]faultKind{first + 1: k, second + 1: k2})
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
	store := b.store.(*fileStore)
	mark := store.mark()
	if _, err := store.file.WriteAt(s.data[testSpan:], testSpan); err != nil {
		t.Fatal(err)
	}
	d.faults = map[int]faultKind{d.step + 3: failCall}
	if err := b.Sync(); err == nil {
		t.Fatal("no error")
	}
	if ok, err := store.set(1, mark); ok || err != nil || store.Has(1) {
		t.Errorf("the span counts as filled: %v, %v", ok, err)
	}
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
	s := newSource(4 * testSpan)
	for name, then := range map[string]func(d *memDisk, b *Blob) (*Blob, error){
		"fill": func(_ *memDisk, b *Blob) (*Blob, error) { return b, b.Fill(t.Context(), 0, b.Size()) },
		"close": func(d *memDisk, b *Blob) (*Blob, error) {
			var lost *LostError
			if err := b.Close(); !errors.As(err, &lost) {
				t.Error("close:", err)
			}
			d.names["blob"].errors, d.names["blob"].seen = 0, false // the inode was dropped
			_, b, err := openMem(d, bootA, s)
			return b, err
		},
		"death": func(d *memDisk, _ *Blob) (*Blob, error) {
			_, b, err := openMem(d, bootA, s)
			return b, err
		},
	} {
		t.Run(name, func(t *testing.T) {
			d := newMemDisk()
			_, b, err := openMem(d, bootA, s)
			if err != nil {
				t.Fatal(err)
			}
			if err := b.Fill(t.Context(), 0, b.Size()); err != nil {
				t.Fatal(err)
			}
			d.names["blob"].drop()
			b, err = then(d, b)
			if err := errors.Join(err, wrong(d, b, s)); err != nil {
				t.Error(err)
			}
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
