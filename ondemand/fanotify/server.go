package fanotify

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lacuna-snapshotter/lacuna/erofs"
	"github.com/lacuna-snapshotter/lacuna/internal/fault"
	"github.com/lacuna-snapshotter/lacuna/ondemand"
	"github.com/lacuna-snapshotter/lacuna/ondemand/journal"
)

// Server is the transport.
type Server struct {
	group   *os.File
	journal *journal.Journal
	log     *slog.Logger
	self    int32

	left     map[int32][]left // of a dead daemon, by number, until Recover
	reserved []int            // descriptors that keep those numbers from being used
	clashes  map[int32]bool   // of those numbers, what we had in use already

	ctx    context.Context // of all fills; ends with Close
	cancel context.CancelFunc
	loop   chan struct{} // closed when no more events are read
	work   sync.WaitGroup

	recovered chan struct{} // closed by Recover

	taking   sync.Mutex
	draining bool

	mu    sync.RWMutex
	blobs map[inode]*ondemand.Blob
}

// inode is a file's identity.
type inode struct{ dev, ino uint64 }

func identity(st *unix.Stat_t) inode { return inode{st.Dev, st.Ino} }

// Serve answers the events of a group, which it owns from now on with its
// journal, until Close. Once all blobs of live mounts are attached, Recover must
// be called: until then requests for files that are not attached wait. It
// answers what a dead daemon has left, too.
func Serve(group *os.File, j *journal.Journal, log *slog.Logger) (*Server, error) {
	ctx, cancel := context.WithCancel(context.Background())
	s := &Server{
		group: group, journal: j, log: log, self: int32(os.Getpid()),
		ctx: ctx, cancel: cancel, loop: make(chan struct{}), recovered: make(chan struct{}),
		blobs: map[inode]*ondemand.Blob{}, clashes: map[int32]bool{},
	}
	var err error
	if s.left, err = leftovers(j); err != nil {
		log.Error("reading the journal of the last daemon", "error", err)
	}
	if err := s.reserve(); err != nil {
		cancel()
		return nil, err
	}
	go s.read()
	return s, nil
}

// reserve takes the descriptor numbers that unanswered events have, so that no
// new event gets one of them: answers go by number, to the eldest event of it.
// A number that is ours already may come free before Recover, and a new event get
// it; that waits then.
func (s *Server) reserve() error {
	if len(s.left) == 0 {
		return nil
	}
	null, err := unix.Open("/dev/null", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	s.reserved = append(s.reserved, null)
	for number := range s.left {
		fd, err := unix.FcntlInt(uintptr(null), unix.F_DUPFD_CLOEXEC, int(number))
		if err != nil {
			return fmt.Errorf("reserve descriptor %d of an event: %w", number, err)
		}
		s.reserved = append(s.reserved, fd)
		if fd != int(number) {
			s.clashes[number] = true
		}
	}
	return nil
}

// Recover implements ondemand.Transport.
func (s *Server) Recover() {
	var wg sync.WaitGroup
	for number, list := range s.left {
		wg.Add(1)
		go func() {
			defer wg.Done()
			s.answerLeft(number, list)
		}()
	}
	wg.Wait()
	if len(s.left) > 0 {
		s.log.Info("answered what the last daemon had left", "events", len(s.left))
	}
	for _, fd := range s.reserved {
		unix.Close(fd)
	}
	s.left, s.reserved = nil, nil
	close(s.recovered)
}

// answerLeft answers the events that may have a number. There may be several: one
// that was answered, whose number was used again. So all are filled before any is
// answered.
func (s *Server) answerLeft(number int32, list []left) {
	var errno unix.Errno
	for _, l := range list {
		errno = max(errno, s.fillLeft(l))
	}
	for _, l := range list {
		if _, err := s.group.Write(answer(number, errno)); err != nil && !errors.Is(err, unix.ENOENT) {
			s.log.Error("answering an event of the last daemon", "error", err)
		}
		s.journal.Clear(l.slot)
	}
}

// fillLeft fills an event's range: in its blob or, where the daemon died before
// it knew which that was, in every blob that has such a range.
func (s *Server) fillLeft(l left) unix.Errno {
	s.mu.RLock()
	var blobs []*ondemand.Blob
	for id, b := range s.blobs {
		if id == l.file || l.file == (inode{}) {
			blobs = append(blobs, b)
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

// Name implements ondemand.Transport.
func (s *Server) Name() string { return "fanotify" }

// Store implements ondemand.Transport: blobs are files.
func (s *Server) Store(ondemand.Key, int64, int64) (ondemand.Store, error) { return nil, nil }

// Serves implements ondemand.Transport: complete blobs are the kernel's own.
func (s *Server) Serves(b *ondemand.Blob) bool { return !b.Complete() }

// Revive implements ondemand.Transport: the kernel has let readers through.
func (s *Server) Revive(b *ondemand.Blob) error {
	if s.Serves(b) {
		return errors.New("holes may have been read as zeros")
	}
	return nil
}

// Mount implements ondemand.Transport.
func (s *Server) Mount(b *ondemand.Blob, bootstrap, target string) error {
	return erofs.Mount(bootstrap, b.Path(), target)
}

// Remove implements ondemand.Transport: the kernel keeps nothing.
func (s *Server) Remove(ondemand.Key) error { return nil }

// Attach implements ondemand.Transport. A complete blob needs no marking, but may
// have events of the time before a dead daemon had completed it.
func (s *Server) Attach(b *ondemand.Blob, _ string) error {
	id, err := blobInode(b)
	if err != nil {
		return err
	}
	s.mu.Lock()
	s.blobs[id] = b
	s.mu.Unlock()
	if b.Complete() {
		return nil
	}
	return mark(s.group, unix.FAN_MARK_ADD, b.Path())
}

func blobInode(b *ondemand.Blob) (inode, error) {
	var st unix.Stat_t
	if err := unix.Stat(b.Path(), &st); err != nil {
		return inode{}, &os.PathError{Op: "stat", Path: b.Path(), Err: err}
	}
	return identity(&st), nil
}

// Release implements ondemand.Transport. Requests under way are still answered.
func (s *Server) Release(b *ondemand.Blob) error {
	if !b.Complete() {
		return errors.New("release of " + b.Key().String() + ": it has holes")
	}
	return s.unmark(b)
}

// Detach implements ondemand.Transport.
func (s *Server) Detach(b *ondemand.Blob) error {
	err := s.unmark(b)
	id, statErr := blobInode(b)
	if statErr == nil {
		s.mu.Lock()
		delete(s.blobs, id)
		s.mu.Unlock()
	}
	return err
}

func (s *Server) unmark(b *ondemand.Blob) error {
	err := mark(s.group, unix.FAN_MARK_REMOVE, b.Path())
	if errors.Is(err, unix.ENOENT) {
		return nil // it was removed before
	}
	return err
}

// Close implements ondemand.Transport. Fills under way are ended, and what was
// read of the group is answered, before its descriptor is closed; after a Drain
// all but what that left.
func (s *Server) Close() error {
	s.cancel()
	s.work.Wait() // the loop goes on meanwhile: a fill's write may need it
	err := s.group.SetReadDeadline(past)
	<-s.loop
	s.work.Wait()
	return errors.Join(err, s.group.Close())
}

// Drain implements ondemand.Transport. Requests that come from now on are left
// in the journal. Our own writes are answered until Close.
func (s *Server) Drain() {
	s.taking.Lock()
	s.draining = true
	s.taking.Unlock()
	ondemand.WaitDrained(&s.work)
}

func (s *Server) leaving() bool {
	s.taking.Lock()
	defer s.taking.Unlock()
	return s.draining
}

// read is the loop. It never fills itself: a fill's own write may raise an
// event that only the loop can answer.
func (s *Server) read() {
	defer close(s.loop)
	for {
		n, err := s.group.Read(s.journal.Inbox())
		if err != nil {
			if !errors.Is(err, os.ErrDeadlineExceeded) && !errors.Is(err, os.ErrClosed) {
				s.log.Error("reading fanotify events", "error", err)
			}
			return
		}
		fault.Point("request read")
		s.journal.Received(n)
		events, err := decode(s.journal.Inbox()[:n])
		if err != nil {
			s.log.Error("decoding fanotify events", "error", err)
		}
		for _, e := range events {
			s.take(e)
		}
		s.journal.Emptied(n)
	}
}

// take answers an event or starts the goroutine that will.
func (s *Server) take(e event) {
	switch {
	case e.fd < 0: // an overflow, which FAN_UNLIMITED_QUEUE rules out
		s.log.Error("fanotify event without a file", "mask", e.mask)
	case e.pid == s.self && s.clashing(e):
		// The kernel takes this for the answer to a dead daemon's event, which
		// is not filled yet: that fails, and its answer will be ours.
		s.answer(e, unix.EIO)
		s.closeFile(e)
	case e.pid == s.self:
		s.answer(e, 0)
		s.closeFile(e)
	default:
		var st unix.Stat_t
		if err := unix.Fstat(int(e.fd), &st); err != nil {
			s.log.Error("stat of an event's file", "error", err)
			s.answer(e, unix.EIO)
			s.closeFile(e)
			return
		}
		id := identity(&st)
		slot := s.journal.Put(encodeSlot(e, id))
		s.taking.Lock()
		defer s.taking.Unlock()
		if s.draining {
			return
		}
		s.work.Add(1)
		go func() {
			defer s.work.Done()
			if s.clashing(e) {
				select {
				case <-s.recovered:
				case <-s.ctx.Done():
					return // for the successor, as the dead daemon's
				}
			}
			errno := s.fill(e, id)
			if errno != 0 && s.leaving() {
				return // the successor finds it in the journal
			}
			s.answer(e, errno)
			fault.Point("after the answer")
			s.journal.Clear(slot)
			s.closeFile(e) // now its number may be used again, not before
		}()
	}
}

// clashing reports whether an answer would be taken for that to a dead daemon's
// event.
func (s *Server) clashing(e event) bool {
	if !s.clashes[e.fd] {
		return false
	}
	select {
	case <-s.recovered:
		return false
	default:
		return true
	}
}

// fill brings the event's range and returns what to deny with.
func (s *Server) fill(e event, id inode) unix.Errno {
	b := s.blob(id)
	if b == nil {
		select { // it may be attached yet
		case <-s.recovered:
		case <-s.ctx.Done():
		}
		b = s.blob(id)
	}
	if b == nil {
		s.log.Error("read of a file that is not attached", "inode", id.ino, "pid", e.pid)
		return unix.EIO
	}
	return s.fillBlob(b, e)
}

func (s *Server) blob(id inode) *ondemand.Blob {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.blobs[id]
}

func (s *Server) fillBlob(b *ondemand.Blob, e event) unix.Errno {
	count := e.count
	if count == 0 {
		count = b.Size() // no range: all of it
	}
	if err := b.Fill(s.ctx, e.off, count); err != nil {
		ondemand.LogFailure(s.log, s.leaving(), err, "pid", e.pid)
		return unix.EIO
	}
	return 0
}

func (s *Server) answer(e event, errno unix.Errno) {
	fault.Point("before the answer")
	if _, err := s.group.Write(answer(e.fd, errno)); err != nil {
		s.log.Error("answering a fanotify event", "error", err)
	}
}

func (s *Server) closeFile(e event) {
	if err := unix.Close(int(e.fd)); err != nil {
		s.log.Error("closing an event's file", "error", err)
	}
}

// past is a deadline that is over.
var past = time.Unix(1, 0)
