package fanotify

import (
	"encoding/binary"
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// Journal is memory that a keeper holds beside the group: the events that were
// read and not yet answered. A daemon that dies leaves it as it is, and its
// successor answers what is in it: the kernel matches answers by the number of
// the event's descriptor alone (fanotify_user.c, process_access_response).
//
// The kernel itself writes events into the inbox, so there is no instruction
// at which an event is read and not recorded. From there each gets a slot, which
// adds the file's identity; then the inbox is emptied.
//
//	0     8      magic "LACUNAJ1"
//	8     8      length of what is in the inbox
//	4096  64 Ki  inbox
//	then  slots of 40 bytes: taken, descriptor (int32 each), device, inode,
//	      offset, count
type Journal struct {
	file *os.File
	mem  []byte

	mu   sync.Mutex
	free []int
}

const (
	journalMagic = "LACUNAJ1"
	inboxAt      = 4096
	inboxSize    = 64 << 10
	slotsAt      = inboxAt + inboxSize
	slotSize     = 40
	slotCount    = 8192 // far more than readers that wait at once
	journalSize  = slotsAt + slotCount*slotSize
)

// NewJournal makes an empty journal.
func NewJournal() (*Journal, error) {
	fd, err := unix.MemfdCreate("lacuna-journal", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("memfd_create: %w", err)
	}
	f := os.NewFile(uintptr(fd), "journal")
	if err := f.Truncate(journalSize); err != nil {
		f.Close()
		return nil, err
	}
	j, err := OpenJournal(f)
	if err == nil {
		copy(j.mem, journalMagic)
	}
	return j, err
}

// OpenJournal maps a journal, which it owns from now on.
func OpenJournal(f *os.File) (*Journal, error) {
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if info.Size() != journalSize {
		return nil, fmt.Errorf("journal of %d bytes, expected %d", info.Size(), journalSize)
	}
	mem, err := unix.Mmap(int(f.Fd()), 0, journalSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("map journal: %w", err)
	}
	j := &Journal{file: f, mem: mem}
	for i := slotCount - 1; i >= 0; i-- {
		if j.slot(i)[0] == 0 {
			j.free = append(j.free, i)
		}
	}
	return j, nil
}

// File is what a keeper holds.
func (j *Journal) File() *os.File { return j.file }

func (j *Journal) slot(i int) []byte { return j.mem[slotsAt+i*slotSize:][:slotSize] }

func (j *Journal) inbox() []byte { return j.mem[inboxAt : inboxAt+inboxSize] }

// received says how much the last read put into the inbox; zero empties it.
func (j *Journal) received(n int) { binary.NativeEndian.PutUint64(j.mem[8:], uint64(n)) }

// put records an event and returns its slot, or -1 when there is no room.
func (j *Journal) put(e event, id inode) int {
	j.mu.Lock()
	defer j.mu.Unlock()
	if len(j.free) == 0 {
		return -1
	}
	i := j.free[len(j.free)-1]
	j.free = j.free[:len(j.free)-1]
	b := j.slot(i)
	ne := binary.NativeEndian
	ne.PutUint32(b[4:], uint32(e.fd))
	ne.PutUint64(b[8:], id.dev)
	ne.PutUint64(b[16:], id.ino)
	ne.PutUint64(b[24:], uint64(e.off))
	ne.PutUint64(b[32:], uint64(e.count))
	ne.PutUint32(b, 1)
	return i
}

// clear forgets an event that was answered.
func (j *Journal) clear(i int) {
	if i < 0 {
		return
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	binary.NativeEndian.PutUint32(j.slot(i), 0)
	j.free = append(j.free, i)
}

// left is an event of a dead daemon.
type left struct {
	event
	file inode // zero where the daemon died before it knew
	slot int   // -1 where it is in the inbox only
}

// leftovers lists what a dead daemon has not answered, and perhaps some that it
// has: a second answer does no harm.
func (j *Journal) leftovers() (list []left, err error) {
	seen := map[int32]bool{}
	ne := binary.NativeEndian
	for i := range slotCount {
		b := j.slot(i)
		if ne.Uint32(b) == 0 {
			continue
		}
		l := left{slot: i, file: inode{ne.Uint64(b[8:]), ne.Uint64(b[16:])}}
		l.fd, l.off, l.count = int32(ne.Uint32(b[4:])), int64(ne.Uint64(b[24:])), int64(ne.Uint64(b[32:]))
		seen[l.fd] = true
		list = append(list, l)
	}
	// A length of zero with events behind it: the daemon died between the read
	// and its note of it. The events of earlier reads that may stand there too
	// have been answered, so taking them costs a refused answer each.
	n := min(ne.Uint64(j.mem[8:]), inboxSize)
	inbox := j.inbox()
	if n > 0 {
		inbox = inbox[:n]
	}
	events, err := decode(inbox)
	if n == 0 {
		err = nil
	}
	for _, e := range events {
		if e.fd >= 0 && !seen[e.fd] {
			seen[e.fd] = true
			list = append(list, left{event: e, slot: -1})
		}
	}
	return list, err
}
