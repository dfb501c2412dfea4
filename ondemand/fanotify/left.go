package fanotify

import (
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/lacuna-snapshotter/lacuna/ondemand"
	"github.com/lacuna-snapshotter/lacuna/ondemand/hold/inflight"
)

// InFlight is the shape of the in-flight table that is held beside the group. The
// kernel matches answers by the number of the event's descriptor alone
// (fanotify_user.c, process_access_response), so the next daemon can give them.
var InFlight = inflight.Shape{
	Inbox: 64 << 10,
	Slot:  slotSize,
	Slots: 8192, // far more than readers that wait at once
}

// A slot is the event's descriptor and, with 8 bytes each, its file's device and
// inode, its offset and its count.
const slotSize = 4 + 4*8

func encodeSlot(e event, id inode) []byte {
	ne := binary.NativeEndian
	b := ne.AppendUint32(make([]byte, 0, slotSize), uint32(e.fd))
	for _, v := range []uint64{id.dev, id.ino, uint64(e.off), uint64(e.count)} {
		b = ne.AppendUint64(b, v)
	}
	return b
}

// left is an event of a dead daemon.
type left struct {
	event
	file inode // zero where the daemon died before it knew
	slot int
}

// number is a descriptor number that events of a dead daemon have. The kernel matches
// an answer with the oldest event of a number, so no new event is answered before
// those are.
type number struct {
	events []left
	// held is a descriptor of this process with that number, so that the kernel
	// gives the number to no new event; -1 where it was in use already. When it
	// becomes free a new event may get it, which then waits.
	held     int
	answered chan struct{} // closed when the events are answered
	once     sync.Once
}

// leftovers finds what a dead daemon has not answered, by number, and perhaps some
// that it has: a second answer does no harm once all of a number are filled. What
// was in the inbox only has a slot afterwards: the next read overwrites the inbox,
// and this daemon may die too.
func leftovers(j *inflight.Table, log *slog.Logger) (numbers map[int32]*number, err error) {
	numbers = map[int32]*number{}
	of := func(fd int32) *number {
		if numbers[fd] == nil {
			numbers[fd] = &number{held: -1, answered: make(chan struct{})}
		}
		return numbers[fd]
	}
	ne := binary.NativeEndian
	found := j.Left()
	for i, b := range found.Slots {
		if len(b) != slotSize {
			continue
		}
		l := left{slot: i, file: inode{ne.Uint64(b[4:]), ne.Uint64(b[12:])}}
		l.fd, l.off, l.count = int32(ne.Uint32(b)), int64(ne.Uint64(b[20:])), int64(ne.Uint64(b[28:]))
		n := of(l.fd)
		n.events = append(n.events, l)
	}
	// Where the length is not noted, events of earlier reads may stand in the
	// inbox too. They have been answered; taking them costs a refused answer.
	events, err := decode(found.Inbox)
	if err != nil && found.Noted {
		log.Error("the inbox of the last daemon's in-flight table cannot be decoded", "error", err)
	}
	for _, e := range events {
		if e.fd < 0 {
			continue
		}
		n := of(e.fd)
		if slices.ContainsFunc(n.events, func(l left) bool { return l.off == e.off && l.count == e.count }) {
			continue
		}
		slot, err := j.Put(encodeSlot(e, inode{}))
		if err != nil {
			return nil, err // it stays in the inbox
		}
		n.events = append(n.events, left{event: e, slot: slot})
	}
	j.Emptied(len(j.Inbox()))
	return numbers, nil
}

// reserve takes the numbers.
func reserve(numbers map[int32]*number) error {
	if len(numbers) == 0 {
		return nil
	}
	null, err := unix.Open("/dev/null", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	for at, n := range numbers {
		if int(at) == null {
			continue
		}
		fd, err := unix.FcntlInt(uintptr(null), unix.F_DUPFD_CLOEXEC, int(at))
		switch {
		case errors.Is(err, unix.EMFILE): // this process uses it, and all above
		case errors.Is(err, unix.EINVAL): // above RLIMIT_NOFILE: nothing gets it
		case err != nil:
			return fmt.Errorf("reserve descriptor %d of an event: %w", at, err)
		case fd == int(at):
			n.held = fd
		default:
			unix.Close(fd)
		}
	}
	if n := numbers[int32(null)]; n != nil {
		n.held = null
		return nil
	}
	return unix.Close(null)
}

// Recover implements ondemand.Transport. Each number is free again when its events
// are answered.
func (s *Server) Recover() {
	s.Requests.Recover()
	if len(s.numbers) > 0 {
		s.log.Info("requests of the last daemon are being answered", "numbers", len(s.numbers))
	}
	for fd, n := range s.numbers {
		s.Start(func() { s.answerLeft(fd, n) })
	}
}

// answerLeft answers the events that may have a number. There may be several: one
// that was answered, whose number was used again. So all are filled before any is
// answered.
func (s *Server) answerLeft(fd int32, n *number) {
	var errno unix.Errno
	for _, l := range n.events {
		errno = max(errno, s.fillLeft(l))
	}
	if errno != 0 && s.Leaving() {
		return // the next daemon finds them in the in-flight table
	}
	s.answerAll(fd, n, errno)
}

// answerAll answers the events of a number, once.
func (s *Server) answerAll(fd int32, n *number, errno unix.Errno) {
	n.once.Do(func() {
		for _, l := range n.events {
			s.respond(fd, errno)
			s.table.Clear(l.slot)
		}
		close(n.answered)
		n.free()
	})
}

// free lets the kernel give the number to new events.
func (n *number) free() {
	if n.held >= 0 {
		unix.Close(n.held)
	}
}

// fillLeft fills an event's range: in its blob or, where the daemon died before
// it knew which that was, in every blob that has such a range.
func (s *Server) fillLeft(l left) unix.Errno {
	s.mu.RLock()
	var blobs []*ondemand.Blob
	for id, a := range s.attached {
		if id == l.file || l.file == (inode{}) {
			blobs = append(blobs, a.blob)
		}
	}
	s.mu.RUnlock()
	if len(blobs) == 0 {
		return unix.EIO
	}
	for _, b := range blobs {
		if errno := s.fillBlob(b, l.event); errno != 0 {
			return errno
		}
	}
	return 0
}

// Refuse denies all events that were read from a group and not answered, when the
// in-flight table is lost or cannot be read. Their numbers are unknown, but there are
// few enough to try them all. It comes before Serve.
func Refuse(group *os.File) error {
	limit := unix.Rlimit{Max: maxNumber}
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return os.NewSyscallError("getrlimit", err)
	}
	for fd := range int32(max(maxNumber, min(limit.Max, 16*maxNumber))) {
		for { // a number may have several
			_, err := group.Write(answer(fd, unix.EIO))
			if errors.Is(err, unix.ENOENT) {
				break
			}
			if err != nil {
				return fmt.Errorf("deny what a dead daemon has read: %w", err)
			}
		}
	}
	return nil
}

// maxNumber is more than a descriptor's number can be where the administrator has not
// raised the limit (NR_OPEN, include/uapi/linux/fs.h has 1024 times 1024).
const maxNumber = 1 << 20
