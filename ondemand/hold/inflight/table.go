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

// Shape is the sizes of a table's parts, in bytes. A daemon and the next one must
// agree on all but Slots.
type Shape struct {
	Inbox int // of one read from the kernel
	Note  int // of what the next daemon must know besides
	Slot  int // of one request
	Slots int // how many slots there are at first, and how many are added when all are taken
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

// Table is one such memory.
type Table struct {
	Shape
	file *os.File
	mem  []byte // as large as the table can become; memory behind the file's end must not be touched

	mu    sync.Mutex
	slots int
	free  []int
}

// New makes an empty table.
func New(s Shape) (*Table, error) {
	fd, err := unix.MemfdCreate("lacuna-inflight", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, fmt.Errorf("memfd_create: %w", err)
	}
	// Allocated: a page that there is no memory for would end the process when it
	// is written to.
	if err := unix.Fallocate(fd, 0, 0, int64(s.size(s.Slots))); err != nil {
		return nil, errors.Join(fmt.Errorf("allocate an in-flight table: %w", err), unix.Close(fd))
	}
	f := os.NewFile(uintptr(fd), "in-flight table")
	for at, b := range map[int64][]byte{0: []byte(magic), sizesAt: s.sizes()} {
		if _, err := f.WriteAt(b, at); err != nil {
			f.Close()
			return nil, err
		}
	}
	return Open(f, s)
}

// Fits returns nil for the file of a table of this shape. Other files are tables of
// another build of the daemon, or something else.
func Fits(f *os.File, s Shape) error {
	_, err := slots(f, s)
	return err
}

// slots is how many slots a table's file has room for.
func slots(f *os.File, s Shape) (int, error) {
	info, err := f.Stat()
	if err != nil {
		return 0, err
	}
	n := (info.Size() - int64(s.fixed())) / int64(slotHead+s.Slot)
	if info.Size() < int64(s.fixed()) || n > maxSlots {
		return 0, fmt.Errorf("in-flight table of %d bytes: it is of another version", info.Size())
	}
	head := make([]byte, sizesAt+len(s.sizes()))
	if _, err := f.ReadAt(head, 0); err != nil {
		return 0, err
	}
	if string(head[:len(magic)]) != magic || string(head[sizesAt:]) != string(s.sizes()) {
		return 0, fmt.Errorf("in-flight table begins with %q and %x: it is of another version", head[:len(magic)], head[sizesAt:])
	}
	return int(n), nil
}

// Open maps a table's file, which the table owns from now on.
func Open(f *os.File, s Shape) (*Table, error) {
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
		return nil, fmt.Errorf("map in-flight table: %w", err)
	}
	t := &Table{Shape: s, file: f, mem: mem, slots: n}
	for i := t.slots - 1; i >= 0; i-- {
		if binary.NativeEndian.Uint32(t.slot(i)) == 0 {
			t.free = append(t.free, i)
		}
	}
	return t, nil
}

// File is the file for the holders.
func (t *Table) File() *os.File { return t.file }

// Close ends the use of a table by this process.
func (t *Table) Close() error { return errors.Join(unix.Munmap(t.mem), t.file.Close()) }

func (t *Table) slot(i int) []byte {
	return t.mem[t.size(i):t.size(i+1)]
}

// Inbox is the buffer for reads from the kernel.
func (t *Table) Inbox() []byte { return t.mem[header:][:t.Shape.Inbox] }

// Received records how many bytes the last read put into the inbox.
func (t *Table) Received(n int) { binary.NativeEndian.PutUint64(t.mem[8:], uint64(n)) }

// Emptied records that the first n bytes of the inbox are in slots or answered.
func (t *Table) Emptied(n int) {
	clear(t.Inbox()[:n])
	t.Received(0)
}

// SetNote records what the next daemon must know besides.
func (t *Table) SetNote(b []byte) error {
	if len(b) > t.Shape.Note {
		return fmt.Errorf("note of %d bytes, there is room for %d", len(b), t.Shape.Note)
	}
	copy(t.mem[header+t.Shape.Inbox:], b)
	binary.NativeEndian.PutUint64(t.mem[16:], uint64(len(b)))
	return nil
}

// Note returns what SetNote recorded.
func (t *Table) Note() []byte {
	n := min(binary.NativeEndian.Uint64(t.mem[16:]), uint64(t.Shape.Note))
	return t.mem[header+t.Shape.Inbox:][:n:n]
}

// Put records a request and returns its slot. It fails when there is no memory; then
// the transport must refuse the request at once.
func (t *Table) Put(b []byte) (int, error) {
	if len(b) == 0 || len(b) > t.Slot {
		return -1, fmt.Errorf("record a request of %d bytes, a slot has %d", len(b), t.Slot)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.free) == 0 {
		if err := t.grow(); err != nil {
			return -1, err
		}
	}
	i := t.free[len(t.free)-1]
	t.free = t.free[:len(t.free)-1]
	slot := t.slot(i)
	copy(slot[slotHead:], b)
	binary.NativeEndian.PutUint32(slot, uint32(len(b))) // last: now it counts
	return i, nil
}

// grow adds slots.
func (t *Table) grow() error {
	slots := min(t.slots+max(t.Slots, 1), maxSlots)
	if slots == t.slots {
		return fmt.Errorf("%d requests wait: the in-flight table cannot have more", slots)
	}
	err := descriptor.Use(t.file, func(fd int) error {
		return unix.Fallocate(fd, 0, int64(t.size(t.slots)), int64(t.size(slots)-t.size(t.slots)))
	})
	if err != nil {
		return fmt.Errorf("make room for %d waiting requests: %w", slots, err)
	}
	for i := slots - 1; i >= t.slots; i-- {
		t.free = append(t.free, i)
	}
	t.slots = slots
	return nil
}

// Clear frees the slot of a request that was answered. A slot of -1 is none.
func (t *Table) Clear(i int) {
	if i < 0 {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	binary.NativeEndian.PutUint32(t.slot(i), 0)
	t.free = append(t.free, i)
}

// Left is the requests that a dead daemon had not answered, and perhaps some that it
// had.
type Left struct {
	Slots map[int][]byte
	// Inbox is what the last read brought. Noted says that its length is known.
	// Otherwise the daemon died between the read and Received, or had emptied the
	// inbox, and this is the whole inbox: zeros, or requests with zeros behind
	// them.
	Inbox []byte
	Noted bool
}

// Left returns what a dead daemon left, in memory that the next read from the kernel
// overwrites.
func (t *Table) Left() Left {
	l := Left{Slots: map[int][]byte{}}
	for i := range t.slots {
		slot := t.slot(i)
		if n := int(binary.NativeEndian.Uint32(slot)); n > 0 && n <= t.Slot {
			l.Slots[i] = slot[slotHead:][:n:n]
		}
	}
	n := min(binary.NativeEndian.Uint64(t.mem[8:]), uint64(t.Shape.Inbox))
	l.Inbox, l.Noted = t.Inbox(), n > 0
	if l.Noted {
		l.Inbox = l.Inbox[:n]
	}
	return l
}
