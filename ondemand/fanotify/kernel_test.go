package fanotify

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lacuna-snapshotter/lacuna/internal/hostcheck"
	"github.com/lacuna-snapshotter/lacuna/internal/kernel"
	"github.com/lacuna-snapshotter/lacuna/ondemand"
	"github.com/lacuna-snapshotter/lacuna/ondemand/hold/inflight"
)

// Tests here read a marked file itself, without a file system on it.

const (
	kernelSpan  = 64 << 10
	kernelSpans = 64
)

func needKernel(t *testing.T) {
	t.Helper()
	hostcheck.Root(t)
	hostcheck.Feature(t, kernel.PreContent)
	if err := Probe(t.TempDir()); err != nil {
		hostcheck.Missing(t, "a file system with pre-content events: "+err.Error())
	}
}

// letters has each span filled with a letter of its own, or waits for as long as it
// is stuck.
type letters struct{ stuck atomic.Bool }

func letter(span int64) byte { return 'A' + byte(span%26) }

func (l *letters) Fetch(ctx context.Context, first, last int64, put func(int64, []byte) error) error {
	if l.stuck.Load() {
		<-ctx.Done()
		return ctx.Err()
	}
	for ; first < last; first++ {
		if err := put(first, bytes.Repeat([]byte{letter(first)}, kernelSpan)); err != nil {
			return err
		}
	}
	return nil
}

// serveFile serves a blob at path.
func serveFile(t *testing.T, group *os.File, j *inflight.Table, path string, src *letters) (*Server, *ondemand.Blob) {
	t.Helper()
	s, err := Serve(group, j, slog.New(slog.NewTextHandler(t.Output(), nil)))
	if err != nil {
		t.Fatal(err)
	}
	engine, err := ondemand.New(ondemand.Options{})
	if err != nil {
		t.Fatal(err)
	}
	b, err := engine.Open(ondemand.BlobConfig{
		Key: ondemand.Key{Volume: "v", Cookie: "c"}, Path: path,
		Size: kernelSpans * kernelSpan, SpanSize: kernelSpan, Source: src,
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Attach(b, ""); err != nil {
		t.Fatal(err)
	}
	return s, b
}

// newServer is serveFile with all that it needs.
func newServer(t *testing.T, path string, src *letters) (*Server, *ondemand.Blob) {
	t.Helper()
	group, err := NewGroup()
	if err != nil {
		t.Fatal(err)
	}
	j, err := inflight.New(InFlight)
	if err != nil {
		t.Fatal(err)
	}
	s, b := serveFile(t, group, j, path, src)
	t.Cleanup(func() {
		if err := errors.Join(s.Close(), b.Close()); err != nil {
			t.Error(err)
		}
	})
	return s, b
}

// reader reads a block at the beginning of a span in another process, once it is
// told to.
type reader struct {
	span     int64
	cmd      *exec.Cmd
	out, err bytes.Buffer
	start    func()
	done     chan error
}

func newReader(t *testing.T, path string, span int64) *reader {
	t.Helper()
	r := &reader{span: span, done: make(chan error, 1)}
	r.cmd = exec.CommandContext(t.Context(), "sh", "-c", `read x; exec dd if="$0" bs=4096 count=1 skip="$1" status=none`, path, fmt.Sprint(span*kernelSpan/4096))
	r.cmd.Stdout, r.cmd.Stderr = &r.out, &r.err
	in, err := r.cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := r.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { r.done <- r.cmd.Wait() }()
	r.start = func() { _, _ = in.Write([]byte("\n")) }
	return r
}

func startReader(t *testing.T, path string, span int64) *reader {
	r := newReader(t, path, span)
	r.start()
	return r
}

// result is the read's error; without one the bytes must be right.
func (r *reader) result(t *testing.T) error {
	t.Helper()
	select {
	case err := <-r.done:
		if err == nil && !bytes.Equal(r.out.Bytes(), bytes.Repeat([]byte{letter(r.span)}, 4096)) {
			t.Errorf("span %d: %d wrong bytes, all zeros: %v", r.span, r.out.Len(), len(bytes.Trim(r.out.Bytes(), "\x00")) == 0)
		}
		if err != nil {
			err = fmt.Errorf("%w: %s", err, strings.TrimSpace(r.err.String()))
		}
		return err
	case <-time.After(time.Minute):
		_ = r.cmd.Process.Kill()
		t.Fatalf("the reader of span %d hangs", r.span)
		return nil
	}
}

func (r *reader) mustRead(t *testing.T) {
	t.Helper()
	if err := r.result(t); err != nil {
		t.Errorf("span %d: %v", r.span, err)
	}
}

// small is an in-flight table that must grow.
var small = inflight.Shape{Inbox: InFlight.Inbox, Slot: InFlight.Slot, Slots: 2}

// duplicate is a table's file for the next daemon, as holders have it.
func duplicate(t *testing.T, j *inflight.Table) *os.File {
	t.Helper()
	fd, err := unix.FcntlInt(j.File().Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	return os.NewFile(uintptr(fd), "table")
}

// TestKilledWithFullTable has more readers wait than the in-flight table has room for at
// first, when the daemon, another process, is killed. The next one answers them
// all, and readers whose events get their numbers.
func TestKilledWithFullTable(t *testing.T) {
	if path := os.Getenv("LACUNA_TEST_BLOB"); path != "" {
		j, err := inflight.Open(os.NewFile(4, "table"), small)
		if err != nil {
			t.Fatal(err)
		}
		// Events get numbers that the next daemon has not in use.
		for range 300 {
			if _, err := unix.FcntlInt(0, unix.F_DUPFD_CLOEXEC, 0); err != nil {
				t.Fatal(err)
			}
		}
		src := &letters{}
		src.stuck.Store(true)
		s, _ := serveFile(t, os.NewFile(3, "group"), j, path, src)
		s.Recover()
		fmt.Println("serving")
		select {} // until it is killed
	}
	needKernel(t)
	path := filepath.Join(t.TempDir(), "blob")
	group, j, readers := killed(t, path)
	s, b := serveFile(t, group, j, path, &letters{})
	s.Recover()
	for i := range int64(waiting) {
		readers = append(readers, startReader(t, path, waiting+i))
	}
	for _, r := range readers {
		r.mustRead(t)
	}
	table := duplicate(t, j)
	if err := errors.Join(s.Close(), b.Close()); err != nil {
		t.Error(err)
	}
	if j, err := inflight.Open(table, small); err != nil {
		t.Error(err)
	} else if left := j.Left(); len(left.Slots) != 0 {
		t.Errorf("%d requests are left though all are answered", len(left.Slots))
	}
}

// TestLeftOfUnknownFile has a daemon die with an event in the inbox, which does not say
// of which file it is. If the next daemon attaches another blob only, as when a layer
// cannot be opened, filling that one must not let the reader through, who would get zeros.
func TestLeftOfUnknownFile(t *testing.T) {
	needKernel(t)
	for name, attached := range map[string]string{"attached": "read", "not attached": "other"} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			group, err := NewGroup()
			if err != nil {
				t.Fatal(err)
			}
			j, err := inflight.New(InFlight)
			if err != nil {
				t.Fatal(err)
			}
			file, err := os.Create(filepath.Join(dir, "read"))
			if err != nil {
				t.Fatal(err)
			}
			if err := errors.Join(file.Truncate(kernelSpans*kernelSpan), mark(group, unix.FAN_MARK_ADD, file), file.Close()); err != nil {
				t.Fatal(err)
			}
			r := startReader(t, file.Name(), 3)
			n, err := group.Read(j.Inbox()) // killed before Received
			if err != nil {
				t.Fatal(err)
			}
			events, err := decode(j.Inbox()[:n])
			if err != nil || len(events) != 1 {
				t.Fatal(events, err)
			}
			if err := unix.Close(int(events[0].fd)); err != nil {
				t.Fatal(err)
			}
			s, b := serveFile(t, group, j, filepath.Join(dir, attached), &letters{})
			s.Recover()
			if err := r.result(t); (err == nil) != (attached == "read") {
				t.Errorf("the reader's error: %v", err)
			}
			if err := errors.Join(s.Close(), b.Close()); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestLostTable has the same daemon killed and nobody know what it had read: those
// readers fail, others do not.
func TestLostTable(t *testing.T) {
	needKernel(t)
	path := filepath.Join(t.TempDir(), "blob")
	group, _, readers := killed(t, path)
	if err := Refuse(group); err != nil {
		t.Fatal(err)
	}
	j, err := inflight.New(InFlight)
	if err != nil {
		t.Fatal(err)
	}
	s, b := serveFile(t, group, j, path, &letters{})
	s.Recover()
	for _, r := range readers {
		if err := r.result(t); err == nil {
			t.Errorf("span %d was read", r.span)
		}
		startReader(t, path, r.span).mustRead(t)
	}
	if err := errors.Join(s.Close(), b.Close()); err != nil {
		t.Error(err)
	}
}

// waiting is how many readers wait when killed kills the daemon.
const waiting = 9

// killed has readers wait for a daemon that is killed then, and returns what the next
// one gets.
func killed(t *testing.T, path string) (*os.File, *inflight.Table, []*reader) {
	t.Helper()
	group, err := NewGroup()
	if err != nil {
		t.Fatal(err)
	}
	j, err := inflight.New(small)
	if err != nil {
		t.Fatal(err)
	}
	daemon := exec.CommandContext(t.Context(), os.Args[0], "-test.run", "^TestKilledWithFullTable$")
	daemon.Env = append(os.Environ(), "LACUNA_TEST_BLOB="+path)
	daemon.ExtraFiles = []*os.File{group, j.File()}
	daemon.Stderr = os.Stderr
	out, err := daemon.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := daemon.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := out.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	var readers []*reader
	for i := range int64(waiting) {
		readers = append(readers, startReader(t, path, i))
	}
	for recorded := 0; recorded < waiting; time.Sleep(10 * time.Millisecond) {
		again, err := inflight.Open(j.File(), small) // it may have grown
		if err != nil {
			t.Fatal(err)
		}
		recorded = len(again.Left().Slots)
	}
	if err := daemon.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = daemon.Wait()
	if err := unix.SetNonblock(int(group.Fd()), true); err != nil { // os/exec has changed it
		t.Fatal(err)
	}
	fd, err := unix.FcntlInt(group.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	if j, err = inflight.Open(j.File(), small); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { group.Close() })
	return os.NewFile(uintptr(fd), "group"), j, readers
}

// TestNoDescriptors has the kernel unable to make a descriptor for an event. The
// reader concerned may fail; those that come later do not.
func TestNoDescriptors(t *testing.T) {
	needKernel(t)
	path := filepath.Join(t.TempDir(), "blob")
	s, _ := newServer(t, path, &letters{})
	s.Recover()
	first, second := newReader(t, path, 1), newReader(t, path, 2)
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 0, Max: limit.Max}); err != nil {
		t.Fatal(err)
	}
	first.start()
	err := first.result(t)
	if restoreErr := unix.Setrlimit(unix.RLIMIT_NOFILE, &limit); restoreErr != nil {
		t.Fatal(restoreErr)
	}
	if err == nil {
		t.Error("the kernel had a descriptor to give: the test shows nothing")
	}
	second.start()
	second.mustRead(t)
	startReader(t, path, 1).mustRead(t)
	select {
	case err := <-s.Failed():
		t.Error("failed for good:", err)
	default:
	}
}

// TestReadOnlyMount has a reader's mount of the blob remounted read-only, so that the
// kernel gives nobody a descriptor to write to its files.
func TestReadOnlyMount(t *testing.T) {
	needKernel(t)
	dir := t.TempDir()
	s, _ := newServer(t, filepath.Join(dir, "blob"), &letters{})
	s.Recover()
	mnt := t.TempDir()
	if err := unix.Mount(dir, mnt, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(mnt, 0); err != nil {
			t.Error(err)
		}
	})
	if err := unix.Mount("", mnt, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	startReader(t, filepath.Join(mnt, "blob"), 5).mustRead(t)
	startReader(t, filepath.Join(dir, "blob"), 6).mustRead(t)
}

// TestClosedBeforeRecover ends a start before the blobs are attached: a reader that
// waits is left to the next daemon.
func TestClosedBeforeRecover(t *testing.T) {
	needKernel(t)
	path := filepath.Join(t.TempDir(), "blob")
	group, err := NewGroup()
	if err != nil {
		t.Fatal(err)
	}
	hold(t, group)
	j, err := inflight.New(InFlight)
	if err != nil {
		t.Fatal(err)
	}
	next, err := unix.FcntlInt(group.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	table := duplicate(t, j)
	if err := unix.SetNonblock(next, true); err != nil { // Fd has changed it
		t.Fatal(err)
	}
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, kernelSpans*kernelSpan); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := mark(group, unix.FAN_MARK_ADD, f); err != nil {
		t.Fatal(err)
	}
	s, err := Serve(group, j, slog.New(slog.NewTextHandler(t.Output(), nil)))
	if err != nil {
		t.Fatal(err)
	}
	r := startReader(t, path, 3)
	for len(j.Left().Slots) == 0 {
		time.Sleep(time.Millisecond)
	}
	if !s.Needed() {
		t.Error("not needed, though a file is marked")
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if j, err = inflight.Open(table, InFlight); err != nil {
		t.Fatal(err)
	}
	if len(j.Left().Slots) == 0 {
		t.Error("the in-flight table has nothing for the next daemon")
	}
	s, b := serveFile(t, os.NewFile(uintptr(next), "group"), j, path, &letters{})
	s.Recover()
	r.mustRead(t)
	if err := errors.Join(b.Fill(t.Context(), 0, b.Size()), b.Sync()); err != nil {
		t.Fatal(err)
	}
	if err := s.Detach(b); err != nil { // it is durable
		t.Fatal(err)
	}
	if s.Needed() {
		t.Error("needed, though nothing is marked")
	}
	if err := errors.Join(s.Close(), b.Close()); err != nil {
		t.Error(err)
	}
}
