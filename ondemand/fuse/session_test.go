package fuse

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lacuna-snapshotter/lacuna/internal/hostcheck"
	"github.com/lacuna-snapshotter/lacuna/internal/kernel"
	"github.com/lacuna-snapshotter/lacuna/ondemand"
	"github.com/lacuna-snapshotter/lacuna/ondemand/hold/inflight"
)

// Tests here read the session's files themselves, without a file system on them.

const testSpan = 64 << 10

// letters has each span filled with a letter of its own, or waits.
type letters struct {
	stuck   bool
	waiting atomic.Int64
}

func letter(span int64) byte { return 'A' + byte(span%26) }

func (l *letters) Fetch(ctx context.Context, first, last int64, put func(int64, []byte) error) error {
	if l.stuck {
		l.waiting.Add(1)
		<-ctx.Done()
		return ctx.Err()
	}
	for ; first < last; first++ {
		if err := put(first, bytes.Repeat([]byte{letter(first)}, testSpan)); err != nil {
			return err
		}
	}
	return nil
}

// served is a session without a Recover, and its engine.
type served struct {
	*Server
	t      *testing.T
	dir    string
	engine *ondemand.Engine
	dev    *os.File
}

func needFUSE(t *testing.T) {
	t.Helper()
	hostcheck.Root(t)
	hostcheck.Feature(t, kernel.FUSE)
}

func serveAt(t *testing.T, dir string, dev *os.File, j *inflight.Table) *served {
	t.Helper()
	s := &served{t: t, dir: dir, dev: dev}
	var err error
	if s.engine, err = ondemand.New(ondemand.Options{Fetches: 500, Timeout: 5 * time.Minute}); err != nil {
		t.Fatal(err)
	}
	s.Server, err = Serve(dev, j, Options{Dir: filepath.Join(dir, "fuse"), Loops: map[string][]string{}, Log: slog.New(slog.NewTextHandler(t.Output(), nil))})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func serveNew(t *testing.T) (*served, *inflight.Table) {
	t.Helper()
	dir := t.TempDir()
	dev, err := Open(filepath.Join(dir, "fuse"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unmount(filepath.Join(dir, "fuse")) })
	j, err := inflight.New(InFlight)
	if err != nil {
		t.Fatal(err)
	}
	return serveAt(t, dir, dev, j), j
}

func (s *served) add(name string, src *letters) *ondemand.Blob {
	s.t.Helper()
	b, err := s.engine.Open(ondemand.BlobConfig{
		Key: ondemand.Key{Volume: "v", Cookie: name}, Path: filepath.Join(s.dir, name),
		Size: 512 * testSpan, SpanSize: testSpan, Source: src,
	})
	if err != nil {
		s.t.Fatal(err)
	}
	if err := s.Attach(b, ""); err != nil {
		s.t.Fatal(err)
	}
	return b
}

// read reads a block at the beginning of a span in another process.
func read(ctx context.Context, path string, span int64) *exec.Cmd {
	return exec.CommandContext(ctx, "dd", "if="+path, "bs=4096", "count=1", fmt.Sprint("skip=", span*testSpan/4096), "status=none")
}

func check(t *testing.T, out []byte, err error, span int64) {
	t.Helper()
	if err != nil || !bytes.Equal(out, bytes.Repeat([]byte{letter(span)}, 4096)) {
		t.Errorf("span %d: %d bytes, or wrong: %v", span, len(out), err)
	}
}

// TestStuckReadsHoldNobodyBack has many reads of one blob wait for their fetches.
// What is there of another is read meanwhile.
func TestStuckReadsHoldNobodyBack(t *testing.T) {
	needFUSE(t)
	s, _ := serveNew(t)
	stuck := &letters{stuck: true}
	a, b := s.add("a", stuck), s.add("b", &letters{})
	s.Recover()
	if err := b.Fill(t.Context(), 0, b.Size()); err != nil {
		t.Fatal(err)
	}
	ctx, kill := context.WithCancel(t.Context())
	var readers []*exec.Cmd
	const many = 80
	for i := range int64(many) {
		c := read(ctx, s.path(a), 5*i)
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		readers = append(readers, c)
	}
	hang, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for stuck.waiting.Load() < many && hang.Err() == nil {
		time.Sleep(time.Millisecond)
	}
	if n := stuck.waiting.Load(); n < many {
		t.Errorf("%d reads of %d were taken", n, many)
	}
	out, err := read(hang, s.path(b), 32).Output()
	check(t, out, err, 32)
	kill()
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	for _, c := range readers {
		_ = c.Wait() // it was killed
	}
	if err := errors.Join(a.Close(), b.Close()); err != nil {
		t.Error(err)
	}
}

// TestEndedSession aborts a session below the server, which tells that it is deaf;
// and a device that has ended is told from one that has not.
func TestEndedSession(t *testing.T) {
	needFUSE(t)
	s, _ := serveNew(t)
	b := s.add("a", &letters{})
	s.Recover()
	if !Alive(s.dev) {
		t.Error("a session that is served has ended")
	}
	out, err := read(t.Context(), s.path(b), 1).Output()
	check(t, out, err, 1)
	select {
	case err := <-s.Failed():
		t.Fatal("failed for good:", err)
	default:
	}
	if err := unix.Unmount(s.Server.dir, unix.MNT_FORCE|unix.MNT_DETACH); err != nil {
		t.Fatal(err)
	}
	if err := <-s.Failed(); !errors.Is(err, unix.ENODEV) && !errors.Is(err, unix.ECONNABORTED) {
		t.Error(err)
	}
	if Alive(s.dev) {
		t.Error("an aborted session is alive")
	}
	if err := errors.Join(s.Close(), b.Close()); err != nil {
		t.Error(err)
	}
}

// TestClosedBeforeRecover ends a start before its blobs are attached: who looks for
// one is left to the next daemon.
func TestClosedBeforeRecover(t *testing.T) {
	needFUSE(t)
	s, j := serveNew(t)
	next, err := unix.FcntlInt(s.dev.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.SetNonblock(next, true); err != nil { // Fd has changed it
		t.Fatal(err)
	}
	type result struct {
		out []byte
		err error
	}
	done := make(chan result, 1)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	go func() {
		out, err := read(ctx, filepath.Join(s.Server.dir, "v-a"), 3).Output()
		done <- result{out, err}
	}()
	for len(j.Left().Slots) == 0 { // its LOOKUP
		time.Sleep(time.Millisecond)
	}
	table, err := unix.FcntlInt(j.File().Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if j, err = inflight.Open(os.NewFile(uintptr(table), "table"), InFlight); err != nil {
		t.Fatal(err)
	}
	again := serveAt(t, s.dir, os.NewFile(uintptr(next), "fuse"), j)
	b := again.add("a", &letters{})
	again.Recover()
	r := <-done
	check(t, r.out, r.err, 3)
	if err := errors.Join(again.Close(), b.Close()); err != nil {
		t.Error(err)
	}
}
