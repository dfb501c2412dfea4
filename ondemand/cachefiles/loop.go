package cachefiles

import (
	"errors"

	"golang.org/x/sys/unix"

	"github.com/lacuna-snapshotter/lacuna/ondemand"
)

// read is the loop. It reads until the queue is empty, then waits. After an error
// it reads on: the kernel tells only once that there is something to read.
func (s *Server) read() {
	defer close(s.loop)
	b := make([]byte, maxMessage)
	pace := ondemand.Pace{Log: s.Log, What: "a cachefiles request"}
	for {
		n, err := s.kernel.read(b)
		switch {
		case errors.Is(err, unix.EINTR), errors.Is(err, unix.EEXIST):
			// EEXIST: an OPEN for an object that has a descriptor, which the
			// kernel has answered.
			continue
		case err == nil && n > 0:
			pace.Good()
			s.take(b[:n])
			continue
		case err == nil, errors.Is(err, unix.EAGAIN):
			pace.Good()
			err = s.wait()
		}
		switch {
		case err == nil:
		case errors.Is(err, errWoken):
			return
		case errors.Is(err, unix.EBADF), errors.Is(err, unix.EFAULT), errors.Is(err, unix.EINVAL):
			// The call itself is wrong, so the next one fails too.
			s.Fail(err)
			return
		default:
			pace.Failed(err)
			if s.stopped.Load() {
				return
			}
		}
	}
}

// wait returns when there may be requests, and has culling started that is asked
// for.
func (s *Server) wait() error {
	cull, err := s.kernel.wait()
	if cull {
		select {
		case s.cull <- struct{}{}:
		default:
		}
	}
	return err
}

// take starts the answer to a request. What orders requests of one object is
// done here.
func (s *Server) take(b []byte) {
	if s.dialect == Unknown {
		s.dialect = detect(b)
	}
	m, err := decode(b, s.dialect)
	if err != nil {
		s.Log.Error("a cachefiles request could not be decoded", "error", err)
		return
	}
	if s.seen != nil {
		s.seen(m)
	}
	switch m.op {
	case opOpen:
		o := s.register(m)
		s.Go(func() { s.open(m, o) })
	case opClose:
		s.mu.Lock()
		o := s.objects[m.object]
		delete(s.objects, m.object)
		s.mu.Unlock()
		if o != nil {
			close(o.gone)
			s.Go(func() {
				<-o.opened // whose answer may be making a duplicate
				s.release(o)
			})
		}
	case opRead:
		r := request{m.id, m.object}
		s.mu.Lock()
		o, twice := s.objects[m.object], s.reading[r]
		s.reading[r] = true
		s.mu.Unlock()
		switch {
		case twice:
			return // restored while we work on it
		case o == nil:
			// Without a descriptor nothing can be said to a mainline kernel,
			// which asks again with an OPEN before it.
			s.Log.Error("a cachefiles request is for an unknown object", "request", m)
			s.done(r)
			if s.dialect == V5 {
				s.complete(m, nil)
			}
			return
		}
		s.Go(func() {
			filled := s.fill(m, o)
			s.done(r)
			if filled || !s.Leaving() {
				s.complete(m, o)
			} // else the kernel restores it for the next daemon
		})
	default:
		s.Log.Error("cachefiles request with an unknown opcode", "opcode", m.op, "id", m.id)
	}
}
