package fanotify

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lacuna-snapshotter/lacuna/ondemand"
)

// left is an event that a dead daemon has read, or one that has the same number.
type left struct {
	event
	file inode // zero where the daemon died before it knew
	slot int

	// Of one that this daemon has read.
	live bool // its descriptor is open
	own  bool // it is of a write of this process
}

// number is a descriptor number that events of a dead daemon have. The kernel matches
// an answer with the oldest event of a number that was read, and a dead event may have
// been answered already. So an answer for it may reach any event of its number. That
// does no harm if
//
//   - no event of the number is answered before all of them are filled,
//   - that includes events that get the number later, which are read under
//     Server.numbering as all are, and join the number until it is answered, and
//   - each is in the in-flight table until then: if this daemon dies too, the next
//     one has them all.
type number struct {
	fd int32
	// held is a descriptor of this process with that number, so that the kernel
	// gives the number to no new event; -1 where it was in use already. When it
	// becomes free a new event may get it, which then joins.
	held int

	// Guarded by Server.numbering.
	events   []left
	filled   int           // the first events that are filled
	answered chan struct{} // closed when the events are answered
}

func newNumber(fd int32) *number {
	return &number{fd: fd, held: -1, answered: make(chan struct{})}
}

func (n *number) isAnswered() bool {
	select {
	case <-n.answered:
		return true
	default:
		return false
	}
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
	for _, n := range s.numbers {
		s.Start(func() { s.answerLeft(n) })
	}
}

// answerLeft fills the events of a number, and those that join it meanwhile, and then
// answers them.
func (s *Server) answerLeft(n *number) {
	var errno unix.Errno
	for {
		for _, l := range s.unfilled(n, errno) {
			errno = max(errno, s.fillLeft(l))
		}
		if errno != 0 && s.Leaving() {
			return // the next daemon finds them in the in-flight table
		}
		if s.answerFilled(n, errno) {
			return
		}
	}
}

// unfilled returns the events of a number that nothing was done about yet. After an
// error there are none: all will be denied.
func (s *Server) unfilled(n *number, errno unix.Errno) []left {
	s.numbering.Lock()
	defer s.numbering.Unlock()
	list := n.events[n.filled:len(n.events):len(n.events)]
	n.filled = len(n.events)
	if errno != 0 {
		return nil
	}
	return list
}

// answerFilled answers a number's events, unless another has joined.
func (s *Server) answerFilled(n *number, errno unix.Errno) bool {
	s.numbering.Lock()
	defer s.numbering.Unlock()
	if n.filled < len(n.events) {
		return false
	}
	s.answerAll(n, errno)
	return true
}

// patience is how long a write of this process that has got the number of dead events
// waits for their fill before it denies them: it may be that fill's own write.
const patience = time.Second

// join adds a new event to those of its number. The caller holds s.numbering.
func (s *Server) join(n *number, l left) {
	n.events = append(n.events, l)
	if !l.own {
		return
	}
	waits := s.Start(func() {
		late := time.NewTimer(patience)
		defer late.Stop()
		select {
		case <-n.answered:
			return
		case <-late.C:
		case <-s.Context().Done():
		}
		s.numbering.Lock()
		defer s.numbering.Unlock()
		s.answerAll(n, unix.EIO)
	})
	if !waits {
		s.answerAll(n, unix.EIO)
	}
}

// answerAll answers the events of a number, once. If dead ones are denied, writes of
// this process that came after them go on, unless a reader has joined: an answer for a
// write may reach the reader. The caller holds s.numbering.
func (s *Server) answerAll(n *number, errno unix.Errno) {
	if n.isAnswered() {
		return
	}
	readers := slices.ContainsFunc(n.events, func(l left) bool { return l.live && !l.own })
	for _, l := range n.events {
		if l.own && !readers {
			s.answer(l.event, 0)
		} else {
			s.answer(l.event, errno)
		}
		s.table.Clear(l.slot)
		if l.live {
			s.closeFile(l.event)
		}
	}
	close(n.answered)
	n.free()
}

// freeNumbers lets go of the numbers at the end.
func (s *Server) freeNumbers() {
	s.numbering.Lock()
	defer s.numbering.Unlock()
	for _, n := range s.numbers {
		if !n.isAnswered() {
			n.free()
		}
	}
}

// free lets the kernel give the number to new events.
func (n *number) free() {
	if n.held >= 0 {
		unix.Close(n.held)
	}
}

// fillLeft fills an event's range: in its blob or, where the daemon died before
// it knew which that was, in every blob that has such a range. Then it may be any file
// that is marked, so all must be attached.
func (s *Server) fillLeft(l left) unix.Errno {
	if l.own {
		return 0
	}
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
	if l.file == (inode{}) {
		if err := s.allAttached(); err != nil {
			s.LogFailure(fmt.Errorf("the last daemon did not record which file it is of: %w", err))
			return unix.EIO
		}
	}
	for _, b := range blobs {
		if errno := s.fillBlob(b, l.event); errno != 0 {
			return errno
		}
	}
	return 0
}
