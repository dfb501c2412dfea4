package fanotify

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lacuna-snapshotter/lacuna/internal/descriptor"
	"github.com/lacuna-snapshotter/lacuna/internal/hostcheck"
	"github.com/lacuna-snapshotter/lacuna/ondemand"
	"github.com/lacuna-snapshotter/lacuna/ondemand/journal"
	"github.com/lacuna-snapshotter/lacuna/ondemand/transporttest"
)

func TestConformance(t *testing.T) {
	hostcheck.Root(t)
	if err := Probe(t.TempDir()); err != nil {
		hostcheck.Missing(t, "fanotify pre-content events: "+err.Error())
	}
	var release func()
	transporttest.Run(t, transporttest.Kind{
		New: func(t *testing.T, _ string, _ *ondemand.Engine) ondemand.Transport {
			group, err := NewGroup()
			if err != nil {
				t.Fatal(err)
			}
			release = hold(t, group)
			j, err := journal.New(Journal)
			if err != nil {
				t.Fatal(err)
			}
			s, err := Serve(group, j, slog.New(slog.NewTextHandler(t.Output(), nil)))
			if err != nil {
				t.Fatal(err)
			}
			s.Recover()
			return s
		},
		Die:      func() { release() },
		Survives: true,
	})
}

// hold keeps another descriptor of the group until the test is over, as a
// keeper does: without one the kernel lets reads through once the server closes.
func hold(t *testing.T, group *os.File) (release func()) {
	t.Helper()
	var fd int
	err := descriptor.Use(group, func(g int) (err error) {
		fd, err = unix.FcntlInt(uintptr(g), unix.F_DUPFD_CLOEXEC, 0)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	release = sync.OnceFunc(func() { unix.Close(fd) })
	t.Cleanup(release)
	return release
}

// encode makes the bytes that the kernel would send.
func encode(e event, withRange bool) []byte {
	var info []byte
	if withRange {
		info = append(info, unix.FAN_EVENT_INFO_TYPE_RANGE, 0)
		info = binary.NativeEndian.AppendUint16(info, rangeSize)
		info = binary.NativeEndian.AppendUint32(info, 0)
		info = binary.NativeEndian.AppendUint64(info, uint64(e.off))
		info = binary.NativeEndian.AppendUint64(info, uint64(e.count))
	}
	b := binary.NativeEndian.AppendUint32(nil, uint32(metadataSize+len(info)))
	b = append(b, metadataVersion, 0)
	b = binary.NativeEndian.AppendUint16(b, metadataSize)
	b = binary.NativeEndian.AppendUint64(b, e.mask)
	b = binary.NativeEndian.AppendUint32(b, uint32(e.fd))
	b = binary.NativeEndian.AppendUint32(b, uint32(e.pid))
	return append(b, info...)
}

func TestDecode(t *testing.T) {
	with := event{mask: unix.FAN_PRE_ACCESS, fd: 7, pid: 99, off: 1 << 33, count: 131072}
	without := event{mask: unix.FAN_PRE_ACCESS, fd: 8, pid: 1}
	overflow := event{mask: unix.FAN_Q_OVERFLOW, fd: -1}
	b := append(append(encode(with, true), encode(without, false)...), encode(overflow, false)...)
	list, err := decode(b)
	if err != nil || len(list) != 3 || list[0] != with || list[1] != without || list[2] != overflow {
		t.Fatal(list, err)
	}
	for name, damage := range map[string]func([]byte){
		"version":   func(b []byte) { b[4] = 2 },
		"length":    func(b []byte) { b[0] = 200 },
		"short":     func(b []byte) { b[0] = 3 },
		"metadata":  func(b []byte) { b[6] = 255 },
		"info size": func(b []byte) { b[metadataSize+2] = 0 },
		"range":     func(b []byte) { b[metadataSize+15] = 0x80 },
	} {
		bad := encode(with, true)
		damage(bad)
		if _, err := decode(bad); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	if list, err := decode(b[:len(b)-1]); err == nil || len(list) != 2 {
		t.Errorf("cut: %v %v", list, err)
	}
}

func TestLeftovers(t *testing.T) {
	j, err := journal.New(Journal)
	if err != nil {
		t.Fatal(err)
	}
	one := event{fd: 20, off: 4096, count: 8192}
	two := event{fd: 21, off: 1 << 40, count: 1}
	slot := j.Put(encodeSlot(one, inode{1, 2}))
	j.Put(encodeSlot(two, inode{3, 4}))
	three := event{mask: unix.FAN_PRE_ACCESS, fd: 22, off: 5, count: 6}
	j.Received(copy(j.Inbox(), append(encode(one, true), encode(three, true)...)))
	byFD := func() map[int32]left {
		lists, err := leftovers(j)
		if err != nil {
			t.Fatal(err)
		}
		found := map[int32]left{}
		for number, list := range lists {
			if len(list) != 1 || list[0].fd != number {
				t.Errorf("%d: %+v", number, list)
			}
			found[number] = list[0]
		}
		return found
	}
	found := byFD()
	if len(found) != 3 || found[20].file != (inode{1, 2}) || found[21].off != 1<<40 || found[22].file != (inode{}) || found[22].count != 6 {
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
	id, err := blobInode(b)
	if err != nil {
		t.Fatal(err)
	}
	return b, id
}

// successor serves what a journal has, with a pipe for the kernel's end, of which
// only answers are of interest.
func successor(t *testing.T, j *journal.Journal) (s *Server, kernel *os.File) {
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
	j, err := journal.New(Journal)
	if err != nil {
		t.Fatal(err)
	}
	const number = 900
	j.Put(encodeSlot(event{fd: number, off: 0, count: testSpan}, id))
	j.Received(copy(j.Inbox(), encode(event{mask: unix.FAN_PRE_ACCESS, fd: number, off: testSpan, count: testSpan}, true)))
	s, kernel := successor(t, j)
	s.blobs[id] = b
	recovered := make(chan struct{})
	go func() { s.Recover(); close(recovered) }()
	early := make([]byte, 64)
	if err := kernel.SetReadDeadline(time.Now().Add(200 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	if n, err := kernel.Read(early); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("answered before both were filled: %x, %v", early[:n], err)
	}
	close(src.gate)
	<-recovered
	expect(t, kernel, answer(number, 0), answer(number, 0))
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
	if err := b.Fill(t.Context(), 0, 2*testSpan); err != nil || !b.Complete() {
		t.Fatal(b.Complete(), err)
	}
	j, err := journal.New(Journal)
	if err != nil {
		t.Fatal(err)
	}
	j.Put(encodeSlot(event{fd: 900, off: testSpan, count: testSpan}, id))
	s, kernel := successor(t, j)
	if err := s.Attach(b, ""); err != nil {
		t.Fatal(err)
	}
	s.Recover()
	expect(t, kernel, answer(900, 0))
}

// gated gives zeros: the first span at once, others through a gate.
type gated struct{ gate chan struct{} }

func (g *gated) Grow(first, last int64, _ bool) (int64, int64) { return first, last }

func (g *gated) Fetch(_ context.Context, first, last int64, put func(int64, []byte) error) error {
	for i := first; i <= last; i++ {
		if i > 0 {
			<-g.gate
		}
		if err := put(i, make([]byte, testSpan)); err != nil {
			return err
		}
	}
	return nil
}

func TestAnswer(t *testing.T) {
	for errno, want := range map[unix.Errno]uint32{0: 1, unix.EIO: 2 | 5<<24} {
		b := answer(12, errno)
		if binary.NativeEndian.Uint32(b) != 12 || binary.NativeEndian.Uint32(b[4:]) != want {
			t.Errorf("errno %d: %x", errno, b)
		}
	}
}

func FuzzDecode(f *testing.F) {
	f.Add(encode(event{fd: 3, off: 4096, count: 8192}, true))
	f.Add(bytes.Repeat(encode(event{fd: 3}, false), 3))
	f.Fuzz(func(t *testing.T, b []byte) {
		list, err := decode(b)
		if err != nil {
			return
		}
		var again []byte
		for _, e := range list {
			again = append(again, encode(e, true)...)
		}
		second, err := decode(again)
		if err != nil || len(second) != len(list) {
			t.Fatalf("%v then %v: %v", list, second, err)
		}
		for i := range list {
			if list[i] != second[i] {
				t.Fatalf("%v then %v", list[i], second[i])
			}
		}
	})
}
