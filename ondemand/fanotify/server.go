package fanotify

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lacuna-snapshotter/lacuna/ondemand"
)

// Server is the transport.
type Server struct {
	group *os.File
	log   *slog.Logger
	self  int32

	ctx    context.Context // of all fills; ends with Close
	cancel context.CancelFunc
	loop   chan struct{} // closed when no more events are read
	work   sync.WaitGroup

	events atomic.Int64

	mu    sync.RWMutex
	blobs map[inode]*ondemand.Blob
}

// inode is a file's identity.
type inode struct{ dev, ino uint64 }

func identity(st *unix.Stat_t) inode { return inode{st.Dev, st.Ino} }

// Serve answers the events of a group, which it owns from now on, until Close.
func Serve(group *os.File, log *slog.Logger) *Server {
	ctx, cancel := context.WithCancel(context.Background())
	s := &Server{
		group: group, log: log, self: int32(os.Getpid()),
		ctx: ctx, cancel: cancel, loop: make(chan struct{}), blobs: map[inode]*ondemand.Blob{},
	}
	go s.read()
	return s
}

// Name implements ondemand.Transport.
func (s *Server) Name() string { return "fanotify" }

// Events is how many requests the kernel has sent.
func (s *Server) Events() int64 { return s.events.Load() }

// Attach implements ondemand.Transport.
func (s *Server) Attach(b *ondemand.Blob) error {
	id, err := blobInode(b)
	if err != nil {
		return err
	}
	s.mu.Lock()
	s.blobs[id] = b
	s.mu.Unlock()
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
// read of the group is answered, before its descriptor is closed.
func (s *Server) Close() error {
	s.cancel()
	err := s.group.SetReadDeadline(past)
	<-s.loop
	s.work.Wait()
	return errors.Join(err, s.group.Close())
}

// Drain stops reading events, which then queue for whoever else holds the
// group, and waits until what was read is answered. Close comes after it.
func (s *Server) Drain() error {
	err := s.group.SetReadDeadline(past)
	<-s.loop
	s.work.Wait()
	return err
}

// read is the loop. It never fills itself: a fill's own write may raise an
// event that only the loop can answer.
func (s *Server) read() {
	defer close(s.loop)
	buf := make([]byte, 64<<10)
	for {
		n, err := s.group.Read(buf)
		if err != nil {
			if !errors.Is(err, os.ErrDeadlineExceeded) && !errors.Is(err, os.ErrClosed) {
				s.log.Error("reading fanotify events", "error", err)
			}
			return
		}
		events, err := decode(buf[:n])
		if err != nil {
			s.log.Error("decoding fanotify events", "error", err)
		}
		for _, e := range events {
			s.take(e)
		}
	}
}

// take answers an event or starts the goroutine that will.
func (s *Server) take(e event) {
	switch {
	case e.fd < 0: // an overflow, which FAN_UNLIMITED_QUEUE rules out
		s.log.Error("fanotify event without a file", "mask", e.mask)
	case e.pid == s.self:
		s.answer(e, 0)
	default:
		s.events.Add(1)
		s.work.Add(1)
		go func() {
			defer s.work.Done()
			s.answer(e, s.fill(e))
		}()
	}
}

// fill brings the event's range and returns what to deny with.
func (s *Server) fill(e event) unix.Errno {
	var st unix.Stat_t
	if err := unix.Fstat(int(e.fd), &st); err != nil {
		s.log.Error("stat of an event's file", "error", err)
		return unix.EIO
	}
	s.mu.RLock()
	b := s.blobs[identity(&st)]
	s.mu.RUnlock()
	if b == nil {
		s.log.Error("read of a file that is not attached", "inode", st.Ino, "pid", e.pid)
		return unix.EIO
	}
	count := e.count
	if count == 0 {
		count = b.Size() // no range: all of it
	}
	if err := b.Fill(s.ctx, e.off, count); err != nil {
		s.log.Error("read fails with EIO", "pid", e.pid, "error", err)
		return unix.EIO
	}
	return 0
}

func (s *Server) answer(e event, errno unix.Errno) {
	if _, err := s.group.Write(answer(e.fd, errno)); err != nil {
		s.log.Error("answering a fanotify event", "error", err)
	}
	if err := unix.Close(int(e.fd)); err != nil {
		s.log.Error("closing an event's file", "error", err)
	}
}

// past is a deadline that is over.
var past = time.Unix(1, 0)
