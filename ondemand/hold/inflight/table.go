// Package inflight is memory that a keeper holds beside a transport's
// descriptors: the requests that were read from the kernel and not yet answered.
// A daemon that dies leaves it as it is; its successor answers what is in it.
//
// # Model
//
// The kernel itself writes requests into the inbox, so there is no instruction
// at which one is read and not recorded. From there each is put into a slot, as
// the transport encodes it; then the inbox is emptied, and the slot when the
// request is answered. A request may so be found twice, or once after it was
// answered: answers must bear that.
//
// The memory grows when all slots are taken. To stop reading from the kernel until
// one is free would not do: the answers that free them may need a request to be
// read that is behind others in the kernel's queue. See fanotify, whose fills raise
// events. A slot is small beside the thread that waits for it.
//
//	0     8      magic "LACUNAJ3"
//	8     8      length of what is in the inbox
//	16    8      length of the note
//	24    24     the sizes of inbox, note and slot, 8 bytes each
//	4096  ...    inbox, note, and slots to the end; a slot is its length (4 bytes,
//	             0 is free) and as many bytes
//
// # Concurrency
//
// Put and Clear may be called concurrently; the inbox and the note belong to one
// goroutine.
package inflight

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/lacuna-snapshotter/lacuna/internal/descriptor"
)

// Shape is how large the parts are, in bytes. A daemon and its successor must
// agree on all but Slots.
type Shape struct {
	Inbox int // of one read from the kernel
	Note  int // of what the successor must know besides
	Slot  int // of one request
	Slots int // requests that there is room for at first, and how much it grows
}

const (
	magic    = "LACUNAJ3"
	header   = 4096
	sizesAt  = 24
	slotHead = 4

	// maxSlots is the most threads there can be, each of which waits for one
	// answer (PID_MAX_LIMIT, include/linux/threads.h).
	maxSlots = 4 << 20
)

func (s Shape) fixed() int { return header + s.Inbox + s.Note }

func (s Shape) size(slots int) int { return s.fixed() + slots*(slotHead+s.Slot) }

// sizes is that part of the header.
func (s Shape) sizes() (b []byte) {
	for _, v := range []int{s.Inbox, s.Note, s.Slot} {
		b = binary.NativeEndian.AppendUint64(b, uint64(v))
	}
	return b
}

// Journal is one such memory.
type Journal struct {
	Shape
	file *os.File
	mem  []byte // as large as it can become; what is behind the file's end is out of bounds

	mu    sync.Mutex
	slots int
	free  []int
}

// New makes an empty journal.
func New(s Shape) (*Journal, error) {
	fd, err := unix.MemfdCreate("lacuna-journal", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, fmt.Errorf("memfd_create: %w", err)
	}
	// Allocated: a page that there is no memory for would end the process when it
	// is written to.
	if err := unix.Fallocate(fd, 0, 0, int64(s.size(s.Slots))); err != nil {
		return nil, errors.Join(fmt.Errorf("allocate a journal: %w", err), unix.Close(fd))
	}
	f := os.NewFile(uintptr(fd), "journal")
	for at, b := range map[int64][]byte{0: []byte(magic), sizesAt: s.sizes()} {
		if _, err := f.WriteAt(b, at); err != nil {
			f.Close()
			return nil, err
		}
	}
	return Open(f, s)
}

// Fits reports why a file is no journal of a shape: one of another version, or
// something else.
func Fits(f *os.File, s Shape) error {
	_, err := slots(f, s)
	return err
}

// slots is how many a journal has room for.
func slots(f *os.File, s Shape) (int, error) {
	info, err := f.Stat()
	if err != nil {
		return 0, err
	}
	n := (info.Size() - int64(s.fixed())) / int64(slotHead+s.Slot)
	if info.Size() < int64(s.fixed()) || n > maxSlots {
		return 0, fmt.Errorf("journal of %d bytes: it is of another version", info.Size())
	}
	head := make([]byte, sizesAt+len(s.sizes()))
	if _, err := f.ReadAt(head, 0); err != nil {
		return 0, err
	}
	if string(head[:len(magic)]) != magic || string(head[sizesAt:]) != string(s.sizes()) {
		return 0, fmt.Errorf("journal begins with %q and %x: it is of another version", head[:len(magic)], head[sizesAt:])
	}
	return int(n), nil
}

// Open maps a journal, which it owns from now on.
func Open(f *os.File, s Shape) (*Journal, error) {
	n, err := slots(f, s)
	if err != nil {
		return nil, err
	}
	var mem []byte
	err = descriptor.Use(f, func(fd int) (err error) {
		mem, err = unix.Mmap(fd, 0, s.size(maxSlots), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("map journal: %w", err)
	}
	j := &Journal{Shape: s, file: f, mem: mem, slots: n}
	for i := j.slots - 1; i >= 0; i-- {
		if binary.NativeEndian.Uint32(j.slot(i)) == 0 {
			j.free = append(j.free, i)
		}
	}
	return j, nil
}

// File is what a keeper holds.
func (j *Journal) File() *os.File { return j.file }

func (j *Journal) slot(i int) []byte {
	return j.mem[j.size(i):j.size(i+1)]
}

// Inbox is where the kernel is to write what is read from it.
func (j *Journal) Inbox() []byte { return j.mem[header:][:j.Shape.Inbox] }

// Received says how much the last read put into the inbox.
func (j *Journal) Received(n int) { binary.NativeEndian.PutUint64(j.mem[8:], uint64(n)) }

// Emptied says that the first n bytes of the inbox are in slots or answered.
func (j *Journal) Emptied(n int) {
	clear(j.Inbox()[:n])
	j.Received(0)
}

// SetNote keeps what the successor must know.
func (j *Journal) SetNote(b []byte) error {
	if len(b) > j.Shape.Note {
		return fmt.Errorf("note of %d bytes, there is room for %d", len(b), j.Shape.Note)
	}
	copy(j.mem[header+j.Shape.Inbox:], b)
	binary.NativeEndian.PutUint64(j.mem[16:], uint64(len(b)))
	return nil
}

// Note returns what SetNote has kept.
func (j *Journal) Note() []byte {
	n := min(binary.NativeEndian.Uint64(j.mem[16:]), uint64(j.Shape.Note))
	return j.mem[header+j.Shape.Inbox:][:n:n]
}

// Put records a request and returns its slot. It fails where there is no memory:
// then the request must be refused at once.
func (j *Journal) Put(b []byte) (int, error) {
	if len(b) == 0 || len(b) > j.Slot {
		return -1, fmt.Errorf("record a request of %d bytes, a slot has %d", len(b), j.Slot)
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	if len(j.free) == 0 {
		if err := j.grow(); err != nil {
			return -1, err
		}
	}
	i := j.free[len(j.free)-1]
	j.free = j.free[:len(j.free)-1]
	slot := j.slot(i)
	copy(slot[slotHead:], b)
	binary.NativeEndian.PutUint32(slot, uint32(len(b))) // last: now it counts
	return i, nil
}

// grow makes room for more.
func (j *Journal) grow() error {
	slots := min(j.slots+max(j.Slots, 1), maxSlots)
	if slots == j.slots {
		return fmt.Errorf("%d requests wait: there can be no more", slots)
	}
	err := descriptor.Use(j.file, func(fd int) error {
		return unix.Fallocate(fd, 0, int64(j.size(j.slots)), int64(j.size(slots)-j.size(j.slots)))
	})
	if err != nil {
		return fmt.Errorf("make room for %d waiting requests: %w", slots, err)
	}
	for i := slots - 1; i >= j.slots; i-- {
		j.free = append(j.free, i)
	}
	j.slots = slots
	return nil
}

// Clear forgets a request that was answered. A slot of -1 is none.
func (j *Journal) Clear(i int) {
	if i < 0 {
		return
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	binary.NativeEndian.PutUint32(j.slot(i), 0)
	j.free = append(j.free, i)
}

// Left is what a dead daemon has not answered, and perhaps some that it has.
type Left struct {
	Slots map[int][]byte
	// Inbox is what the last read brought. Noted says that its length is known;
	// else the daemon died between the read and Received, or has emptied the
	// inbox, and all of the inbox is here: zeros, or requests with zeros behind
	// them.
	Inbox []byte
	Noted bool
}

// Left returns what a dead daemon left, in memory that is overwritten with the
// next read.
func (j *Journal) Left() Left {
	l := Left{Slots: map[int][]byte{}}
	for i := range j.slots {
		slot := j.slot(i)
		if n := int(binary.NativeEndian.Uint32(slot)); n > 0 && n <= j.Slot {
			l.Slots[i] = slot[slotHead:][:n:n]
		}
	}
	n := min(binary.NativeEndian.Uint64(j.mem[8:]), uint64(j.Shape.Inbox))
	l.Inbox, l.Noted = j.Inbox(), n > 0
	if l.Noted {
		l.Inbox = l.Inbox[:n]
	}
	return l
}
