package fanotify

import (
	"errors"
	"log/slog"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lacuna-snapshotter/lacuna/internal/fault"
	"github.com/lacuna-snapshotter/lacuna/ondemand"
	"github.com/lacuna-snapshotter/lacuna/ondemand/hold/inflight"
)

// Server is the transport.
type Server struct {
	group *os.File
	table *inflight.Table
	log   *slog.Logger
	self  int32
	loop  chan struct{} // closed when no more events are read
	*ondemand.Requests

	numbering sync.Mutex        // held while events are read and taken, and while dead ones are answered
	numbers   map[int32]*number // of a dead daemon's events; not changed after Serve

	mu       sync.RWMutex
	attached map[inode]*attached
}

// Serve answers the events of a group, which it owns from now on with its in-flight
// table, until Close. Once all blobs of live mounts are attached, Recover must
// be called: until then requests for files that are not attached wait.
func Serve(group *os.File, j *inflight.Table, log *slog.Logger) (*Server, error) {
	numbers, err := leftovers(j, log)
	if err == nil {
		err = reserve(numbers)
	}
	var conn syscall.RawConn
	if err == nil {
		conn, err = group.SyscallConn()
	}
	if err != nil {
		return nil, errors.Join(err, group.Close(), j.Close())
	}
	s := &Server{
		group: group, table: j, log: log, self: int32(os.Getpid()), numbers: numbers,
		loop: make(chan struct{}), Requests: ondemand.NewRequests(log, true), attached: map[inode]*attached{},
	}
	go s.read(conn)
	return s, nil
}

// Name implements ondemand.Transport.
func (s *Server) Name() string { return name }

// Close implements ondemand.Transport. Fills under way are ended, and what was
// read of the group is answered, before its descriptor is closed; after a Drain, or
// before Recover, all but what is left.
func (s *Server) Close() error {
	if n := s.holes(); n > 0 {
		s.log.Info("reads of holes wait as long as a holder has the fanotify group; without one they give zeros", "blobs", n)
	}
	s.End()
	s.WaitAll() // the loop goes on meanwhile: a fill's write may need it
	err := s.group.SetReadDeadline(past)
	<-s.loop
	s.WaitAll()
	s.freeNumbers()
	return errors.Join(err, s.detachAll(), s.group.Close(), s.table.Close())
}

// Drain implements ondemand.Transport. Requests that come from now on are left
// in the in-flight table. Our own writes are answered until Close.
func (s *Server) Drain() {
	s.Leave()
	s.Wait()
}

// read is the loop. It never fills itself: a fill's own write may raise an
// event that only the loop can answer.
func (s *Server) read(conn syscall.RawConn) {
	defer close(s.loop)
	pace := ondemand.Pace{Log: s.log, What: "a fanotify event"}
	for {
		err := s.readOnce(conn)
		switch {
		case err == nil:
			pace.Good()
		case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, os.ErrClosed):
			return
		case final(err):
			s.Fail(err)
			return
		default:
			pace.Failed(err)
		}
	}
}

// readOnce waits for events, reads and takes them. Reading and taking hold
// s.numbering, as answering dead events does: see number.
func (s *Server) readOnce(conn syscall.RawConn) error {
	var readErr error
	err := conn.Read(func(fd uintptr) bool {
		s.numbering.Lock()
		defer s.numbering.Unlock()
		var n int
		n, readErr = unix.Read(int(fd), s.table.Inbox())
		if readErr == nil {
			s.received(n)
		}
		return !errors.Is(readErr, unix.EAGAIN)
	})
	return errors.Join(err, readErr)
}

// final reports whether a read failed because the call itself is wrong, so that all
// later ones fail too. Other errors are those of one event: the kernel could make no descriptor of
// its file, and has denied it (fanotify_user.c, fanotify_read: what is not copied
// is answered with FAN_DENY).
func final(err error) bool {
	return errors.Is(err, unix.EBADF) || errors.Is(err, unix.EFAULT) || errors.Is(err, unix.EINVAL)
}

// received answers or records the events in the inbox.
func (s *Server) received(n int) {
	fault.Point("request read")
	s.table.Received(n)
	events, err := decode(s.table.Inbox()[:n])
	if err != nil {
		s.log.Error("fanotify events could not be decoded", "error", err)
	}
	for _, e := range events {
		s.take(e)
	}
	s.table.Emptied(n)
}

// take answers an event or starts the goroutine that will. The caller holds
// s.numbering.
func (s *Server) take(e event) {
	if e.fd < 0 { // an overflow, which FAN_UNLIMITED_QUEUE rules out
		s.log.Error("a fanotify event has no file", "mask", e.mask)
		return
	}
	dead := s.numbers[e.fd]
	if dead != nil && dead.isAnswered() {
		dead = nil
	}
	own := e.pid == s.self // a fill's write, which must not wait for fills
	if own && dead == nil {
		s.answer(e, 0)
		s.closeFile(e)
		return
	}
	var st unix.Stat_t
	err := unix.Fstat(int(e.fd), &st)
	slot := -1
	if err == nil {
		slot, err = s.table.Put(encodeSlot(e, identity(&st)))
	}
	if err != nil {
		s.log.Error("read fails with EIO", "error", err, "pid", e.pid)
		if dead != nil {
			s.answerAll(dead, unix.EIO)
		}
		s.answer(e, unix.EIO)
		s.closeFile(e)
		return
	}
	if dead != nil {
		s.join(dead, left{event: e, file: identity(&st), slot: slot, live: true, own: own})
		return
	}
	s.Start(func() { s.serve(e, identity(&st), slot) })
}

// serve brings an event's range and answers.
func (s *Server) serve(e event, id inode, slot int) {
	errno := s.fill(e, id)
	if errno != 0 && s.Leaving() {
		return // the next daemon finds it in the in-flight table
	}
	s.answer(e, errno)
	fault.Point("after the answer")
	s.table.Clear(slot)
	s.closeFile(e) // now its number may be used again, not before
}

// fill brings the event's range and returns what to deny with.
func (s *Server) fill(e event, id inode) unix.Errno {
	b := ondemand.Find(s.Requests, func() *ondemand.Blob { return s.blob(id) })
	if b == nil {
		s.LogFailure(errors.New("the file is not attached"), "inode", id.ino, "pid", e.pid)
		return unix.EIO
	}
	return s.fillBlob(b, e)
}

func (s *Server) fillBlob(b *ondemand.Blob, e event) unix.Errno {
	count := e.count
	if count == 0 {
		count = b.Size() // no range: all of it
	}
	if err := b.Fill(s.Context(), e.off, count); err != nil {
		s.LogFailure(err, "pid", e.pid)
		return unix.EIO
	}
	return 0
}

func (s *Server) answer(e event, errno unix.Errno) {
	fault.Point("before the answer")
	s.respond(e.fd, errno)
}

func (s *Server) respond(fd int32, errno unix.Errno) {
	// ENOENT: the reader was killed, or it was answered before.
	if _, err := s.group.Write(answer(fd, errno)); err != nil && !errors.Is(err, unix.ENOENT) {
		s.log.Error("a fanotify event could not be answered", "error", err)
	}
}

func (s *Server) closeFile(e event) {
	if err := unix.Close(int(e.fd)); err != nil {
		s.log.Error("the file of a fanotify event could not be closed", "error", err)
	}
}

// past is a deadline that is over.
var past = time.Unix(1, 0)
