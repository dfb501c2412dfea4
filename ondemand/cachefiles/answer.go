package cachefiles

import (
	"errors"

	"golang.org/x/sys/unix"

	"github.com/lacuna-snapshotter/lacuna/ondemand"
)

// open answers an OPEN.
func (s *Server) open(m message, o *object) {
	defer close(o.opened)
	b := s.find(m)
	if b == nil && s.Early() && s.Leaving() {
		return // the kernel restores it for the next daemon
	}
	if b == nil {
		s.Log.Warn("the kernel asks for keys that are not attached", "volume", m.volume, "cookie", m.cookie)
		s.reply(openReply(s.dialect, m, -int64(unix.ENOENT)), m)
		s.forget(o)
		return
	}
	// While the reply is written the descriptor stays open: the kernel would
	// fail the OPEN, and reuse the number.
	err := o.use(func(int) error { return s.kernel.command(openReply(s.dialect, m, b.Size())) })
	if err != nil {
		s.Log.Error("a cachefiles request could not be answered", "request", m, "error", err)
		s.forget(o)
		return
	}
	if s.Holder != nil {
		err := o.use(func(fd int) error { return s.Holder.Hold(label(o.id, o.volume, o.cookie), fd) })
		if err != nil {
			s.Log.Error("an object is not held for the next daemon", "cookie", o.cookie, "error", err)
		}
		o.held = err == nil
	}
	if err := s.bind(o, b); err != nil {
		s.Log.Error("the extents of a cache file could not be read", "cookie", o.cookie, "error", err)
	}
}

// fill brings a READ's range, or says in the log why not.
func (s *Server) fill(m message, o *object) bool {
	select {
	case <-o.opened:
	case <-s.Context().Done():
		return false
	}
	st := o.bound()
	var b *ondemand.Blob
	if st != nil {
		b = s.lookup(st.key)
	}
	if b == nil {
		s.LogFailure(errors.New("its layer is not attached"), "request", m)
		return false
	}
	if st.covers(m.off, m.n) {
		if err := st.doubt(s.Context(), o); err != nil {
			s.Log.Error("the extents of a cache file could not be read", "cookie", o.cookie, "error", err)
		}
	}
	if err := b.Fill(s.Context(), m.off, m.n); err != nil {
		s.LogFailure(err)
		return false
	}
	return true
}

// complete ends a READ: the kernel looks at the cache file again.
func (s *Server) complete(m message, o *object) {
	if s.dialect == V5 {
		s.reply(readReply(m), m)
		return
	}
	err := o.use(func(fd int) error { return s.kernel.complete(fd, m.id) })
	// EINVAL: the reader was killed, or the object dropped, meanwhile.
	if err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, errClosed) {
		s.Log.Error("a cachefiles request could not be completed", "request", m, "error", err)
	}
}

func (s *Server) reply(command string, m message) {
	if err := s.kernel.command(command); err != nil && !errors.Is(err, unix.EINVAL) {
		s.Log.Error("a cachefiles request could not be answered", "request", m, "error", err)
	}
}
