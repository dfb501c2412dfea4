package ondemand

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lacuna-snapshotter/lacuna/internal/hostcheck"
)

const (
	testSpan = 4096
	bootA    = "aaaaaaaa-aaaa-aaaa-aaaa-aaaaaaaaaaaa"
	bootB    = "bbbbbbbb-bbbb-bbbb-bbbb-bbbbbbbbbbbb"
)

// fakeSource brings spans of a known blob. The hook sees each fetch first.
type fakeSource struct {
	data    []byte
	back    int64 // how far Grow reaches back
	hook    func(ctx context.Context, first, last int64) error
	fetches atomic.Int64
	missed  atomic.Int64
	mu      sync.Mutex
	ranges  [][2]int64
}

func newSource(n int) *fakeSource {
	s := &fakeSource{data: make([]byte, n)}
	for i := range s.data {
		s.data[i] = byte(i*31 ^ i>>8)
	}
	return s
}

func (s *fakeSource) Grow(first, last int64, _ bool) (int64, int64, bool) {
	return first - s.back, last, true
}

func (s *fakeSource) Missed(int64, int64) { s.missed.Add(1) }

func (s *fakeSource) Fetch(ctx context.Context, first, last int64, put func(int64, []byte) error) error {
	s.fetches.Add(1)
	s.mu.Lock()
	s.ranges = append(s.ranges, [2]int64{first, last})
	s.mu.Unlock()
	if s.hook != nil {
		if err := s.hook(ctx, first, last); err != nil {
			return err
		}
	}
	for i := first; i < last; i++ {
		from := i * testSpan
		if err := put(i, s.data[from:min(from+testSpan, int64(len(s.data)))]); err != nil {
			return err
		}
	}
	return nil
}

func openBlob(t *testing.T, opts Options, s *fakeSource, dir string) (*Engine, *Blob) {
	t.Helper()
	if opts.BootID == "" {
		opts.BootID = bootA
	}
	e, err := New(opts)
	if err != nil {
		t.Fatal(err)
	}
	b, err := e.Open(BlobConfig{Key: Key{"v", "c"}, Path: filepath.Join(dir, "blob"), Size: int64(len(s.data)), SpanSize: testSpan, Source: s})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	})
	return e, b
}

func checkFile(t *testing.T, b *Blob, s *fakeSource, off, n int64) {
	t.Helper()
	got := make([]byte, n)
	if _, err := b.backing.(*fileBacking).file.ReadAt(got, off); err != nil || !bytes.Equal(got, s.data[off:off+n]) {
		t.Errorf("[%d,+%d) is wrong: %v", off, n, err)
	}
}

func TestFill(t *testing.T) {
	s := newSource(100*testSpan + 77)
	_, b := openBlob(t, Options{}, s, t.TempDir())
	size := int64(len(s.data))
	for _, r := range [][2]int64{{0, 1}, {5000, 10000}, {size - 1, 1}, {size - 10, 1 << 40}, {0, size}} {
		if err := b.Fill(t.Context(), r[0], r[1]); err != nil {
			t.Fatal(err)
		}
		checkFile(t, b, s, r[0], min(r[1], size-r[0]))
	}
	for _, r := range [][2]int64{{size, 1}, {-1, 5}, {0, 0}} {
		if err := b.Fill(t.Context(), r[0], r[1]); err != nil {
			t.Errorf("%v: %v", r, err)
		}
	}
	if !b.Complete() || b.Filled() != size {
		t.Errorf("complete %v, filled %d of %d", b.Complete(), b.Filled(), size)
	}
	seen := map[int64]int{}
	for _, r := range s.ranges {
		for i := r[0]; i < r[1]; i++ {
			seen[i]++
		}
	}
	for i, n := range seen {
		if n != 1 {
			t.Errorf("span %d was fetched %d times", i, n)
		}
	}
}

func TestOneFetchForManyReaders(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSource(20 * testSpan)
		release := make(chan struct{})
		s.hook = func(context.Context, int64, int64) error { <-release; return nil }
		_, b := openBlob(t, Options{}, s, t.TempDir())
		var answered atomic.Int64
		for i := range 50 {
			go func() {
				if err := b.Fill(t.Context(), int64(i%4)*1000, 4000); err != nil {
					t.Error(err)
				}
				answered.Add(1)
			}()
			if i == 0 {
				synctest.Wait()
			}
		}
		synctest.Wait()
		if answered.Load() != 0 {
			t.Error("somebody was answered before the fetch")
		}
		close(release)
		synctest.Wait()
		if answered.Load() != 50 || s.fetches.Load() > 2 {
			t.Errorf("%d answers, %d fetches", answered.Load(), s.fetches.Load())
		}
	})
}

func TestEarlySpansAreAnsweredEarly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSource(20 * testSpan)
		gate := make(chan struct{})
		src := &gated{s, gate}
		e, err := New(Options{BootID: bootA})
		if err != nil {
			t.Fatal(err)
		}
		b, err := e.Open(BlobConfig{Key: Key{"v", "c"}, Path: filepath.Join(t.TempDir(), "b"), Size: int64(len(s.data)), SpanSize: testSpan, Source: src})
		if err != nil {
			t.Fatal(err)
		}
		defer b.Close()
		go func() { _ = b.FillAhead(t.Context(), 0, 20*testSpan) }()
		gate <- struct{}{}
		if err := b.Fill(t.Context(), 0, testSpan); err != nil {
			t.Error(err)
		}
		for range 19 {
			gate <- struct{}{}
		}
		synctest.Wait()
		if s.fetches.Load() != 1 || !b.Complete() {
			t.Errorf("%d fetches", s.fetches.Load())
		}
	})
}

// gated lets one span through for each token.
type gated struct {
	*fakeSource
	gate chan struct{}
}

func (g *gated) Fetch(ctx context.Context, first, last int64, put func(int64, []byte) error) error {
	return g.fakeSource.Fetch(ctx, first, last, func(i int64, data []byte) error {
		select {
		case <-g.gate:
			return put(i, data)
		case <-ctx.Done():
			return ctx.Err()
		}
	})
}

func TestLastWaiterCancels(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSource(4 * testSpan)
		var cancelled atomic.Bool
		block := true
		s.hook = func(ctx context.Context, _, _ int64) error {
			if !block {
				return nil
			}
			<-ctx.Done()
			cancelled.Store(true)
			return ctx.Err()
		}
		_, b := openBlob(t, Options{}, s, t.TempDir())
		ctx1, cancel1 := context.WithCancel(t.Context())
		ctx2, cancel2 := context.WithCancel(t.Context())
		errs := make(chan error, 2)
		for _, ctx := range []context.Context{ctx1, ctx2} {
			go func() { errs <- b.Fill(ctx, 0, 2*testSpan) }()
		}
		synctest.Wait()
		cancel1()
		if err := <-errs; !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
		synctest.Wait()
		if cancelled.Load() {
			t.Error("the fetch was cancelled under a waiter")
		}
		cancel2()
		if err := <-errs; !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
		synctest.Wait()
		if !cancelled.Load() {
			t.Error("the fetch goes on for nobody")
		}
		block = false
		if err := b.Fill(t.Context(), 0, 2*testSpan); err != nil {
			t.Errorf("after the cancelled fetch: %v", err)
		}
	})
}

func TestFailureIsNotRemembered(t *testing.T) {
	s := newSource(8 * testSpan)
	down := errors.New("registry down")
	s.hook = func(context.Context, int64, int64) error { return down }
	_, b := openBlob(t, Options{}, s, t.TempDir())
	err := b.Fill(t.Context(), 4096, 4096)
	var f *FillError
	if !errors.Is(err, down) || !errors.As(err, &f) || f.Off != 4096 || !strings.Contains(err.Error(), "v/c [4096,8192)") {
		t.Fatal(err)
	}
	if b.Filled() != 0 {
		t.Error("a failed fill left something filled")
	}
	s.hook = nil
	if err := b.Fill(t.Context(), 4096, 4096); err != nil {
		t.Fatal(err)
	}
	checkFile(t, b, s, 4096, 4096)
}

func TestByProductsAreKept(t *testing.T) {
	s := newSource(40 * testSpan)
	s.back = 6
	_, b := openBlob(t, Options{}, s, t.TempDir())
	fill := func(span int64) {
		t.Helper()
		if err := b.Fill(t.Context(), span*testSpan, 1); err != nil {
			t.Fatal(err)
		}
	}
	fill(2)
	fill(20)
	fill(17)
	fill(24) // reaches back to 21: 20 is filled
	want := [][2]int64{{0, 3}, {14, 21}, {21, 25}}
	if !slices.Equal(s.ranges, want) {
		t.Errorf("fetched %v, want %v", s.ranges, want)
	}
	checkFile(t, b, s, 14*testSpan, 11*testSpan)
}

func TestUrgentBeforeBackground(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSource(100 * testSpan)
		step := make(chan struct{})
		s.hook = func(context.Context, int64, int64) error { <-step; return nil }
		_, b := openBlob(t, Options{Fetches: 2, Background: 1, MaxFetch: testSpan}, s, t.TempDir())
		ahead := func(span int64) {
			go func() { _ = b.FillAhead(t.Context(), span*testSpan, 1) }()
			synctest.Wait()
		}
		need := func(span int64) {
			go func() { _ = b.Fill(t.Context(), span*testSpan, 1) }()
			synctest.Wait()
		}
		ahead(1)
		ahead(2)
		ahead(3)
		need(10)
		need(11)
		need(3) // somebody waits for it now
		if got := s.fetches.Load(); got != 2 {
			t.Errorf("%d fetches at once, want 2", got)
		}
		for range 5 {
			step <- struct{}{}
			synctest.Wait()
		}
		var order []int64
		for _, r := range s.ranges {
			order = append(order, r[0])
		}
		if want := []int64{1, 10, 11, 3, 2}; !slices.Equal(order, want) {
			t.Errorf("order %v, want %v", order, want)
		}
	})
}

func TestSourceThatBreaksItsContract(t *testing.T) {
	for name, put := range map[string]func(put func(int64, []byte) error) error{
		"nothing":    func(func(int64, []byte) error) error { return nil },
		"short span": func(put func(int64, []byte) error) error { return put(1, make([]byte, 5)) },
		"other span": func(put func(int64, []byte) error) error { return put(3, make([]byte, testSpan)) },
	} {
		t.Run(name, func(t *testing.T) {
			e, err := New(Options{BootID: bootA})
			if err != nil {
				t.Fatal(err)
			}
			b, err := e.Open(BlobConfig{Path: filepath.Join(t.TempDir(), "b"), Size: 8 * testSpan, SpanSize: testSpan, Source: sourceFunc(put)})
			if err != nil {
				t.Fatal(err)
			}
			defer b.Close()
			if err := b.Fill(t.Context(), testSpan, 1); err == nil {
				t.Error("no error")
			}
		})
	}
}

type sourceFunc func(put func(int64, []byte) error) error

func (f sourceFunc) Fetch(_ context.Context, _, _ int64, put func(int64, []byte) error) error {
	return f(put)
}

func TestSlowFetchTimesOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSource(testSpan)
		s.hook = func(ctx context.Context, _, _ int64) error { <-ctx.Done(); return ctx.Err() }
		_, b := openBlob(t, Options{Timeout: time.Minute}, s, t.TempDir())
		if err := b.Fill(t.Context(), 0, 1); !errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
	})
}

func TestCloseFailsWaiters(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSource(testSpan)
		s.hook = func(ctx context.Context, _, _ int64) error { <-ctx.Done(); return ctx.Err() }
		e, b := openBlob(t, Options{}, s, t.TempDir())
		errs := make(chan error, 1)
		go func() { errs <- b.Fill(t.Context(), 0, 1) }()
		synctest.Wait()
		if err := b.Close(); err != nil {
			t.Error(err)
		}
		if err := <-errs; err == nil {
			t.Error("filled after close")
		}
		if err := b.Fill(t.Context(), 0, 1); !errors.Is(err, ErrClosed) {
			t.Error(err)
		}
		if e.Lookup(Key{"v", "c"}) != nil {
			t.Error("a closed blob is still found")
		}
	})
}

func TestKeyIsTakenOnce(t *testing.T) {
	s := newSource(testSpan)
	e, b := openBlob(t, Options{}, s, t.TempDir())
	_, err := e.Open(BlobConfig{Key: b.Key(), Path: filepath.Join(t.TempDir(), "x"), Size: 1, SpanSize: testSpan, Source: s})
	if !errors.As(err, &ExistsError{}) {
		t.Error(err)
	}
	if len(e.All()) != 1 || e.Lookup(b.Key()) != b {
		t.Error("table")
	}
}

func TestDiskFull(t *testing.T) {
	hostcheck.Root(t)
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=64k"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	s := newSource(64 * testSpan)
	_, b := openBlob(t, Options{}, s, dir)
	err := b.Fill(t.Context(), 0, int64(len(s.data)))
	if !errors.Is(err, unix.ENOSPC) {
		t.Fatalf("got %v", err)
	}
	checkFile(t, b, s, 0, b.Filled()) // in order, so this is what was filled
	if b.Filled() == 0 {
		t.Error("nothing was kept")
	}
	if err := unix.Mount("", dir, "", unix.MS_REMOUNT, "size=1m"); err != nil {
		t.Fatal(err)
	}
	if err := b.Fill(t.Context(), 0, int64(len(s.data))); err != nil {
		t.Fatalf("with room again: %v", err)
	}
	checkFile(t, b, s, 0, int64(len(s.data)))
}

func TestRestartInTheSameBoot(t *testing.T) {
	s := newSource(32 * testSpan)
	dir := t.TempDir()
	_, b := openBlob(t, Options{}, s, dir)
	if err := b.Fill(t.Context(), 5*testSpan, 3*testSpan); err != nil {
		t.Fatal(err)
	}
	// The process is killed: no Close, no sync.
	again := newSource(32 * testSpan)
	_, b2 := openBlob(t, Options{}, again, dir)
	if err := b2.Fill(t.Context(), 5*testSpan, 3*testSpan); err != nil {
		t.Fatal(err)
	}
	if again.fetches.Load() != 0 {
		t.Error("filled spans were fetched again")
	}
	checkFile(t, b2, s, 5*testSpan, 3*testSpan)
}

// TestPowerLoss keeps of every file only what was synced: the durable record
// as it was written, and of the blob what it had at the last sync. Everything
// else may be there or not; here a random part is.
func TestPowerLoss(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 5))
	for round := range 30 {
		s := newSource(64 * testSpan)
		dir := t.TempDir()
		_, b := openBlob(t, Options{}, s, dir)
		synced := make([]byte, len(s.data))
		for range r.IntN(40) {
			if err := b.Fill(t.Context(), r.Int64N(64)*testSpan, 1); err != nil {
				t.Fatal(err)
			}
			if r.IntN(8) == 0 {
				if err := b.Sync(); err != nil {
					t.Fatal(err)
				}
				if _, err := b.backing.(*fileBacking).file.ReadAt(synced, 0); err != nil {
					t.Fatal(err)
				}
			}
		}
		after := filepath.Join(t.TempDir(), "after")
		if err := os.Mkdir(after, 0o700); err != nil {
			t.Fatal(err)
		}
		now, err := os.ReadFile(b.path)
		if err != nil {
			t.Fatal(err)
		}
		for i := range 64 { // pages written but not synced: some are lost
			if r.IntN(2) == 0 {
				copy(now[i*testSpan:(i+1)*testSpan], synced[i*testSpan:])
			}
		}
		if err := os.WriteFile(filepath.Join(after, "blob"), now, 0o600); err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{runningName, durableName} {
			record, err := os.ReadFile(b.path + name)
			if errors.Is(err, os.ErrNotExist) {
				continue
			}
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(after, "blob"+name), record, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		again := newSource(64 * testSpan)
		_, b2 := openBlob(t, Options{BootID: bootB}, again, after)
		for i := range int64(64) {
			if b2.backing.Has(i) && !bytes.Equal(now[i*testSpan:(i+1)*testSpan], s.data[i*testSpan:(i+1)*testSpan]) {
				t.Fatalf("round %d: span %d counts as filled and is lost", round, i)
			}
		}
		if err := b2.Fill(t.Context(), 0, int64(len(s.data))); err != nil {
			t.Fatal(err)
		}
		checkFile(t, b2, s, 0, int64(len(s.data)))
	}
}

func TestDamagedRecordsCountAsEmpty(t *testing.T) {
	for name, damage := range map[string]func(t *testing.T, path string){
		"torn durable":    func(t *testing.T, path string) { truncate(t, path+durableName, 70) },
		"flipped durable": func(t *testing.T, path string) { flip(t, path+durableName, recordHeader) },
		"other magic":     func(t *testing.T, path string) { flip(t, path+durableName, 0) },
	} {
		t.Run(name, func(t *testing.T) {
			s := newSource(16 * testSpan)
			dir := t.TempDir()
			_, b := openBlob(t, Options{}, s, dir)
			if err := errors.Join(b.Fill(t.Context(), 0, 1), b.Sync()); err != nil {
				t.Fatal(err)
			}
			damage(t, b.path)
			_, b2 := openBlob(t, Options{BootID: bootB}, newSource(16*testSpan), dir)
			if b2.Filled() != 0 {
				t.Errorf("%d bytes count as filled", b2.Filled())
			}
		})
	}
}

func truncate(t *testing.T, path string, n int64) {
	t.Helper()
	if err := os.Truncate(path, n); err != nil {
		t.Fatal(err)
	}
}

func flip(t *testing.T, path string, at int) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	b[at] ^= 0xff
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestManyAtOnce is for the race detector: readers of random ranges, some of
// which give up, over a source that fails now and then.
func TestManyAtOnce(t *testing.T) {
	s := newSource(200 * testSpan)
	s.back = 3
	var n atomic.Int64
	s.hook = func(ctx context.Context, _, _ int64) error {
		if n.Add(1)%7 == 0 {
			return errors.New("hiccup")
		}
		return ctx.Err()
	}
	_, b := openBlob(t, Options{Fetches: 4, MaxFetch: 8 * testSpan}, s, t.TempDir())
	var wg sync.WaitGroup
	for worker := range uint64(16) {
		wg.Add(1)
		go func() {
			defer wg.Done()
			r := rand.New(rand.NewPCG(worker, 1))
			for range 100 {
				ctx, cancel := context.WithCancel(t.Context())
				if r.IntN(4) == 0 {
					time.AfterFunc(time.Duration(r.IntN(200))*time.Microsecond, cancel)
				}
				off, size := r.Int64N(int64(len(s.data))), r.Int64N(40000)+1
				if b.Fill(ctx, off, size) == nil {
					checkFile(t, b, s, off, min(size, int64(len(s.data))-off))
				}
				cancel()
			}
		}()
	}
	wg.Wait()
	b.mu.Lock()
	left := fmt.Sprint(len(b.pending))
	b.mu.Unlock()
	if left != "0" {
		t.Errorf("%s spans still pending", left)
	}
}
