// Package journal is memory that a keeper holds beside a transport's
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
//	0     8      magic "LACUNAJ2"
//	8     8      length of what is in the inbox
//	16    8      length of the note
//	4096  ...    inbox, note, slots; a slot is its length (4 bytes, 0 is free)
//	             and as many bytes
//
// # Concurrency
//
// Put and Clear may be called concurrently; the inbox and the note belong to one
// goroutine.
package journal

import (
	"encoding/binary"
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// Shape is how large the parts are, in bytes. A daemon and its successor must
// agree on it.
type Shape struct {
	Inbox int // of one read from the kernel
	Note  int // of what the successor must know besides
	Slot  int // of one request
	Slots int // requests at once
}

const (
	magic    = "LACUNAJ2"
	header   = 4096
	slotHead = 4
)

func (s Shape) size() int { return header + s.Inbox + s.Note + s.Slots*(slotHead+s.Slot) }

// Journal is one such memory.
type Journal struct {
	Shape
	file *os.File
	mem  []byte

	mu   sync.Mutex
	free []int
}

// New makes an empty journal.
func New(s Shape) (*Journal, error) {
	fd, err := unix.MemfdCreate("lacuna-journal", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("memfd_create: %w", err)
	}
	f := os.NewFile(uintptr(fd), "journal")
	if err := f.Truncate(int64(s.size())); err != nil {
		f.Close()
		return nil, err
	}
	if _, err := f.WriteAt([]byte(magic), 0); err != nil {
		f.Close()
		return nil, err
	}
	return Open(f, s)
}

// Open maps a journal, which it owns from now on.
func Open(f *os.File, s Shape) (*Journal, error) {
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if info.Size() != int64(s.size()) {
		return nil, fmt.Errorf("journal of %d bytes, expected %d: it is of another version", info.Size(), s.size())
	}
	mem, err := unix.Mmap(int(f.Fd()), 0, s.size(), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("map journal: %w", err)
	}
	if string(mem[:len(magic)]) != magic {
		return nil, fmt.Errorf("journal begins with %q: it is of another version", mem[:len(magic)])
	}
	j := &Journal{Shape: s, file: f, mem: mem}
	for i := s.Slots - 1; i >= 0; i-- {
		if binary.NativeEndian.Uint32(j.slot(i)) == 0 {
			j.free = append(j.free, i)
		}
	}
	return j, nil
}

// File is what a keeper holds.
func (j *Journal) File() *os.File { return j.file }

func (j *Journal) slot(i int) []byte {
	at := header + j.Shape.Inbox + j.Shape.Note + i*(slotHead+j.Slot)
	return j.mem[at:][:slotHead+j.Slot]
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

// Put records a request and returns its slot, or -1 when there is no room for
// it.
func (j *Journal) Put(b []byte) int {
	j.mu.Lock()
	defer j.mu.Unlock()
	if len(j.free) == 0 || len(b) == 0 || len(b) > j.Slot {
		return -1
	}
	i := j.free[len(j.free)-1]
	j.free = j.free[:len(j.free)-1]
	slot := j.slot(i)
	copy(slot[slotHead:], b)
	binary.NativeEndian.PutUint32(slot, uint32(len(b))) // last: now it counts
	return i
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
	for i := range j.Slots {
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
