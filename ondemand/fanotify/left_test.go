package fanotify

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lacuna-snapshotter/lacuna/ondemand"
	"github.com/lacuna-snapshotter/lacuna/ondemand/hold/inflight"
)

func TestLeftovers(t *testing.T) {
	j, err := inflight.New(InFlight)
	if err != nil {
		t.Fatal(err)
	}
	one := event{fd: 20, off: 4096, count: 8192}
	two := event{fd: 21, off: 1 << 40, count: 1}
	put(t, j, one, inode{1, 2})
	slot := put(t, j, two, inode{3, 4})
	three := event{mask: unix.FAN_PRE_ACCESS, fd: 22, off: 5, count: 6}
	j.Received(copy(j.Inbox(), append(encode(one, true), encode(three, true)...)))
	byFD := func() map[int32]left {
		numbers, err := leftovers(j, slog.New(slog.NewTextHandler(t.Output(), nil)))
		if err != nil {
			t.Fatal(err)
		}
		found := map[int32]left{}
		for fd, n := range numbers {
			for _, l := range n.events {
				if l.fd != fd || l.off != n.events[0].off {
					t.Errorf("%d: %+v", fd, n.events)
				}
			}
			found[fd] = n.events[len(n.events)-1]
		}
		return found
	}
	found := byFD()
	// The first is in a slot and in the inbox: it may be two events.
	if n := len(j.Left().Slots); n != 4 {
		t.Errorf("%d slots", n)
	}
	if len(found) != 3 || found[21].off != 1<<40 || found[22].file != (inode{}) || found[22].count != 6 {
		t.Fatalf("%+v", found)
	}
	// Whoever found them dies too, having read more.
	clear(j.Inbox())
	if found = byFD(); len(found) != 3 {
		t.Fatalf("%+v", found)
	}
	j.Clear(found[22].slot)
	// Killed between the read and the note of its length.
	copy(j.Inbox(), encode(event{mask: unix.FAN_PRE_ACCESS, fd: 23, off: 5, count: 6}, true))
	if found = byFD(); len(found) != 3 || found[23].count != 6 {
		t.Fatalf("%+v", found)
	}
	j.Clear(slot)
	if found = byFD(); len(found) != 2 {
		t.Fatalf("%+v", found)
	}
}

// testSpan is the size of the scripted tests' spans.
const testSpan = 4096

// newBlob is one of two spans, the first filled.
func newBlob(t *testing.T, src ondemand.Source) (*ondemand.Blob, inode) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "blob")
	engine, err := ondemand.New(ondemand.Options{})
	if err != nil {
		t.Fatal(err)
	}
	b, err := engine.Open(ondemand.BlobConfig{Key: ondemand.Key{Volume: "v", Cookie: "c"}, Path: file, Size: 2 * testSpan, SpanSize: testSpan, Source: src})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close() })
	if err := b.Fill(t.Context(), 0, testSpan); err != nil {
		t.Fatal(err)
	}
	var st unix.Stat_t
	if err := unix.Stat(file, &st); err != nil {
		t.Fatal(err)
	}
	return b, identity(&st)
}

func put(t *testing.T, j *inflight.Table, e event, id inode) int {
	t.Helper()
	slot, err := j.Put(encodeSlot(e, id))
	if err != nil {
		t.Fatal(err)
	}
	return slot
}

// successor serves what an in-flight table has, with a pipe for the kernel's end, of which
// only answers are of interest.
func successor(t *testing.T, j *inflight.Table) (s *Server, kernel *os.File) {
	t.Helper()
	kernel, group, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { kernel.Close(); group.Close() })
	if s, err = Serve(group, j, slog.New(slog.DiscardHandler)); err != nil {
		t.Fatal(err)
	}
	return s, kernel
}

func expect(t *testing.T, kernel *os.File, answers ...[]byte) {
	t.Helper()
	want := bytes.Join(answers, nil)
	got := make([]byte, len(want))
	if err := kernel.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(kernel, got); err != nil || !bytes.Equal(got, want) {
		t.Errorf("%x, %v", got, err)
	}
}

// TestNumberUsedTwice has two events of one number, of which the kernel may have
// either: neither is answered before both are filled.
func TestNumberUsedTwice(t *testing.T) {
	src := &gated{gate: make(chan struct{})}
	b, id := newBlob(t, src)
	j, err := inflight.New(InFlight)
	if err != nil {
		t.Fatal(err)
	}
	const number = 900
	put(t, j, event{fd: number, off: 0, count: testSpan}, id)
	j.Received(copy(j.Inbox(), encode(event{mask: unix.FAN_PRE_ACCESS, fd: number, off: testSpan, count: testSpan}, true)))
	s, kernel := successor(t, j)
	s.attached[id] = &attached{blob: b}
	s.Recover()
	early := make([]byte, 64)
	if err := kernel.SetReadDeadline(time.Now().Add(200 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	if n, err := kernel.Read(early); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("answered before both were filled: %x, %v", early[:n], err)
	}
	close(src.gate)
	expect(t, kernel, answer(number, 0), answer(number, 0))
	<-s.numbers[number].answered
	if left := j.Left(); len(left.Slots) != 0 {
		t.Errorf("slots %v are left", left.Slots)
	}
}

// TestLeftOfCompleteBlob has an event that a daemon did not answer before it died,
// of a blob that it had completed.
func TestLeftOfCompleteBlob(t *testing.T) {
	gate := make(chan struct{})
	close(gate)
	b, id := newBlob(t, &gated{gate: gate})
	if err := errors.Join(b.Fill(t.Context(), 0, 2*testSpan), b.Sync()); err != nil || !b.Durable() {
		t.Fatal(b.Durable(), err)
	}
	j, err := inflight.New(InFlight)
	if err != nil {
		t.Fatal(err)
	}
	put(t, j, event{fd: 900, off: testSpan, count: testSpan}, id)
	s, kernel := successor(t, j)
	if err := s.Attach(b, ""); err != nil {
		t.Fatal(err)
	}
	s.Recover()
	expect(t, kernel, answer(900, 0))
}

// gated gives zeros: the first span at once, others through a gate.
type gated struct{ gate chan struct{} }

func (g *gated) Fetch(ctx context.Context, first, last int64, put func(int64, []byte) error) error {
	for i := first; i < last; i++ {
		if i > 0 {
			select {
			case <-g.gate:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		if err := put(i, make([]byte, testSpan)); err != nil {
			return err
		}
	}
	return nil
}

// TestStartWaitsForNobody has three events left, of which one cannot be filled for
// now. The start is over at once, the others are answered and their numbers free,
// and what stays is found by the next daemon when this one stops meanwhile.
func TestStartWaitsForNobody(t *testing.T) {
	src := &gated{gate: make(chan struct{})}
	b, id := newBlob(t, src)
	j, err := inflight.New(InFlight)
	if err != nil {
		t.Fatal(err)
	}
	const stuck = 902
	put(t, j, event{fd: 900, off: 0, count: testSpan}, id)
	put(t, j, event{fd: 901, off: 1, count: 1}, id)
	put(t, j, event{fd: stuck, off: testSpan, count: testSpan}, id)
	s, kernel := successor(t, j)
	for fd := range s.numbers {
		if !isOpen(int(fd)) {
			t.Errorf("number %d may be given to a new event", fd)
		}
	}
	s.attached[id] = &attached{blob: b}
	s.Recover()
	for _, fd := range []int32{900, 901} {
		<-s.numbers[fd].answered
		s.numbering.Lock() // until it is over
		kept := isOpen(int(fd))
		s.numbering.Unlock()
		if kept {
			t.Errorf("number %d is kept though it is answered", fd)
		}
	}
	got := make([]byte, 2*len(answer(0, 0)))
	if _, err := io.ReadFull(kernel, got); err != nil {
		t.Fatal(err)
	}
	if one, two := answer(900, 0), answer(901, 0); !bytes.Equal(got, append(one, two...)) && !bytes.Equal(got, append(two, one...)) {
		t.Errorf("answers %x", got)
	}
	if !isOpen(stuck) {
		t.Errorf("number %d is free before it is answered", stuck)
	}
	s.Leave() // as Drain, without its wait
	s.End()
	s.WaitAll()
	if found, err := leftovers(j, s.log); err != nil || len(found) != 1 || found[stuck] == nil {
		t.Errorf("left for the next daemon: %v, %v", found, err)
	}
	if err := kernel.SetReadDeadline(time.Now().Add(50 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	if n, err := kernel.Read(got); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("answered %x while it stopped, %v", got[:n], err)
	}
	close(src.gate)
}

func isOpen(fd int) bool {
	_, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0)
	return err == nil
}

// TestOwnWriteWithADeadNumber has the kernel give a fill's write the number of an
// event that cannot be filled for now: what came first gets an error, the write goes
// on.
func TestOwnWriteWithADeadNumber(t *testing.T) {
	b, id := newBlob(t, &gated{gate: make(chan struct{})})
	j, err := inflight.New(InFlight)
	if err != nil {
		t.Fatal(err)
	}
	fd, err := unix.FcntlInt(0, unix.F_DUPFD_CLOEXEC, 900) // ours already
	if err != nil {
		t.Fatal(err)
	}
	slot := put(t, j, event{fd: int32(fd), off: testSpan, count: testSpan}, id)
	s, kernel := successor(t, j)
	s.attached[id] = &attached{blob: b}
	s.Recover()
	s.takes(event{fd: int32(fd), pid: s.self}) // which closes it
	expect(t, kernel, answer(int32(fd), unix.EIO), answer(int32(fd), 0))
	s.End()
	s.WaitAll()
	if _, found := j.Left().Slots[slot]; found {
		t.Error("the dead event would be answered again, in place of a later one")
	}
	if isOpen(fd) {
		t.Error("the event's descriptor is left open")
	}
}

// takes has the loop read an event.
func (s *Server) takes(e event) {
	s.numbering.Lock()
	defer s.numbering.Unlock()
	s.take(e)
}

// deadNumber is a number that an event of a dead daemon has and that this process uses,
// so that it is not held. The event is of the filled span: it may have been answered.
func deadNumber(t *testing.T, j *inflight.Table, id inode) int32 {
	t.Helper()
	fd, err := unix.FcntlInt(0, unix.F_DUPFD_CLOEXEC, 900)
	if err != nil {
		t.Fatal(err)
	}
	put(t, j, event{fd: int32(fd), off: 0, count: testSpan}, id)
	return int32(fd)
}

// TestOwnWriteIsNotLost has a daemon die while its own write waits behind a dead event
// of the same number. The kernel keeps both: the next daemon must answer both, or an
// answer for a later event of that number would reach one of them.
func TestOwnWriteIsNotLost(t *testing.T) {
	_, id := newBlob(t, &gated{gate: make(chan struct{})})
	j, err := inflight.New(InFlight)
	if err != nil {
		t.Fatal(err)
	}
	fd := deadNumber(t, j, id)
	s, _ := successor(t, j) // before Recover, so the dead event waits
	s.takes(event{fd: fd, pid: s.self, off: testSpan, count: testSpan})
	found, err := leftovers(j, s.log) // it dies
	if err != nil || len(found[fd].events) != 2 {
		t.Errorf("the next daemon finds %+v, %v", found[fd], err)
	}
	s.End()
	s.WaitAll()
}

// TestReaderWithADeadNumber has the kernel give a reader's event the number of a dead
// one, which had been answered before the daemon died: an answer for the dead one
// reaches the reader. So there is none before the reader's hole is filled.
func TestReaderWithADeadNumber(t *testing.T) {
	src := &gated{gate: make(chan struct{})}
	b, id := newBlob(t, src)
	j, err := inflight.New(InFlight)
	if err != nil {
		t.Fatal(err)
	}
	fd := deadNumber(t, j, id)
	if err := unix.Dup3(fileOf(t, b), int(fd), unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	s, kernel := successor(t, j)
	s.attached[id] = &attached{blob: b}
	s.takes(event{fd: fd, pid: 1, off: testSpan, count: testSpan})
	s.Recover()
	early := make([]byte, 64)
	if err := kernel.SetReadDeadline(time.Now().Add(200 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	if n, err := kernel.Read(early); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("answered before the reader's hole was filled: %x, %v", early[:n], err)
	}
	close(src.gate)
	expect(t, kernel, answer(fd, 0), answer(fd, 0))
	<-s.numbers[fd].answered
	s.numbering.Lock()
	defer s.numbering.Unlock()
	if left := j.Left(); len(left.Slots) != 0 || isOpen(int(fd)) {
		t.Errorf("slots %v are left, or the event's descriptor", left.Slots)
	}
}

// fileOf opens a blob's file.
func fileOf(t *testing.T, b *ondemand.Blob) int {
	t.Helper()
	fd, err := unix.Open(b.Path(), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	return fd
}

// TestDenialReachesNobodyElse has a reader and a write of this process join a dead
// event that cannot be filled. An answer that allows the write might reach the reader.
func TestDenialReachesNobodyElse(t *testing.T) {
	b, id := newBlob(t, &gated{gate: make(chan struct{})})
	j, err := inflight.New(InFlight)
	if err != nil {
		t.Fatal(err)
	}
	fd := deadNumber(t, j, id)
	s, kernel := successor(t, j)
	s.attached[id] = &attached{blob: b}
	n := s.numbers[fd]
	s.numbering.Lock()
	n.events = append(n.events, left{event: event{fd: fd, pid: s.self}, slot: -1, own: true}, left{event: event{fd: fd}, slot: -1, file: id, live: true})
	s.answerAll(n, unix.EIO)
	s.numbering.Unlock()
	expect(t, kernel, answer(fd, unix.EIO), answer(fd, unix.EIO), answer(fd, unix.EIO))
}

// TestNumberAboveTheLimit has an event of a daemon that could have more files open.
func TestNumberAboveTheLimit(t *testing.T) {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	above := int32(min(limit.Cur+10, 1<<30))
	numbers := map[int32]*number{above: newNumber(above)}
	if err := reserve(numbers); err != nil || numbers[above].held != -1 {
		t.Error(numbers[above].held, err)
	}
}
