package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/lacuna-snapshotter/lacuna/internal/descriptor"
)

// holder holds sockets over the daemon's death: the keepers.
type holder interface {
	HoldFile(label string, f syscall.Conn) error
}

// socket is a listener at a path that is locked for this daemon. Accept goes on
// with another listener when the path's has to be made anew.
type socket struct {
	path, root string
	lock       *lock
	keepers    holder

	mu     sync.Mutex
	l      *net.UnixListener
	name   inode // what the path was when l was put there
	lost   bool  // something else is at the path, which was logged
	closed bool
}

// openSocket locks a path, and takes the kept socket that is at it or makes
// one. Kept, nil where none is, is closed. A path on which anybody else answers is
// left alone: a daemon of another root, its keepers, which wait for it, or
// another program.
func openSocket(path, root string, keepers holder, kept *os.File) (s *socket, err error) {
	if kept != nil {
		defer kept.Close()
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, err
	}
	lock, err := take(lockOf(path), lockTime)
	if errors.Is(err, errLocked) {
		err = fmt.Errorf("socket %s is in use: %w: give this one another address, or stop the other", path, err)
	}
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			lock.Close()
		}
	}()
	s = &socket{path: path, root: root, lock: lock, keepers: keepers}
	last, known := lock.owner()
	if kept != nil && s.adopt(kept, last, known) {
		return s, s.note(s.l, s.name)
	}
	if err := vacant(path, root, last, known); err != nil {
		return nil, err
	}
	return s, s.listen()
}

// lockOf is the lock file of a socket.
func lockOf(path string) string { return path + ".lock" }

// adopt takes a kept socket if it is still the one that connections come to.
func (s *socket) adopt(kept *os.File, last owner, known bool) bool {
	number, err := socketNumber(kept)
	if err != nil {
		return false
	}
	if s.name, err = inodeAt(s.path); err != nil {
		return false
	}
	if known && (last.Socket != number || last.Name != s.name) {
		return false
	}
	if !known && !answers(s.path) {
		return false
	}
	l, err := net.FileListener(kept)
	if err != nil {
		return false
	}
	s.l, _ = l.(*net.UnixListener)
	return s.l != nil
}

// vacant reports whether a socket may be put at a path: nothing is there, or one
// on which nobody listens, or one of this root.
func vacant(path, root string, last owner, known bool) error {
	info, err := os.Lstat(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if info.Mode().Type() != os.ModeSocket {
		return fmt.Errorf("%s is there and is no socket: give another address", path)
	}
	at, err := inodeAt(path)
	if err != nil {
		return err
	}
	ours := known && last.Name == at
	switch {
	case ours && last.Root == root || !answers(path):
		return nil
	case ours:
		return fmt.Errorf("socket %s is kept for the daemon with root %s, which has layers mounted: start that one, or give this one another address", path, last.Root)
	}
	return fmt.Errorf("another program listens on socket %s: give another address", path)
}

// answers reports whether anybody listens at a path, also one whose queue is
// full.
func answers(path string) bool {
	conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: path, Net: "unix"})
	if err == nil {
		conn.Close()
	}
	return err == nil || errors.Is(err, unix.EAGAIN)
}

// listen puts a new socket at the path, one that only root can use.
func (s *socket) listen() error {
	if err := os.Remove(s.path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	// bind(2) makes the file with the mode of the socket (unix_bind_bsd in
	// net/unix/af_unix.c): there is no instant at which it has another one, and
	// the umask, which is the whole process's, stays as it is.
	config := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var err error
		return errors.Join(c.Control(func(fd uintptr) { err = unix.Fchmod(int(fd), 0o600) }), err)
	}}
	made, err := config.Listen(context.Background(), "unix", s.path)
	if err != nil {
		return fmt.Errorf("listen on %s: %w", s.path, err)
	}
	l, _ := made.(*net.UnixListener)
	l.SetUnlinkOnClose(false)
	name, err := inodeAt(s.path)
	if err == nil {
		err = errors.Join(s.note(l, name), s.keepers.HoldFile(socketLabel+s.path, l))
	}
	if err != nil {
		return errors.Join(err, os.Remove(s.path), l.Close())
	}
	s.l, s.name = l, name
	return nil
}

// note writes into the lock file whose the path is.
func (s *socket) note(l *net.UnixListener, name inode) error {
	number, err := socketNumber(l)
	if err != nil {
		return err
	}
	return s.lock.note(owner{Root: s.root, PID: os.Getpid(), Socket: number, Name: name})
}

func socketNumber(c syscall.Conn) (uint64, error) {
	var st unix.Stat_t
	err := descriptor.Use(c, func(fd int) error { return unix.Fstat(fd, &st) })
	return st.Ino, err
}

// look makes the socket anew if its path was removed.
func (s *socket) look(log *slog.Logger) {
	s.mu.Lock()
	defer s.mu.Unlock()
	at, err := inodeAt(s.path)
	switch {
	case s.closed:
	case err == nil && at == s.name:
		s.lost = false
	case errors.Is(err, os.ErrNotExist):
		old := s.l
		if err := s.listenAgain(); err != nil {
			s.warnOnce(log, err)
			return
		}
		s.lost = false
		old.Close()
		log.Warn("somebody removed a socket; it was made anew", "socket", s.path)
	case err != nil:
		s.warnOnce(log, err)
	default:
		s.warnOnce(log, errors.New("somebody put another file at its path; the socket is made anew when that is gone"))
	}
}

// listenAgain is listen where the directory may be gone too, and the lock with it.
func (s *socket) listenAgain() error {
	if err := os.MkdirAll(filepath.Dir(s.path), 0o700); err != nil {
		return err
	}
	if !s.lock.at(lockOf(s.path)) {
		l, err := take(lockOf(s.path), 0)
		if err != nil {
			return err
		}
		s.lock.Close()
		s.lock = l
	}
	return s.listen()
}

func (s *socket) warnOnce(log *slog.Logger, err error) {
	if !s.lost {
		log.Error("nobody can connect to a socket of this daemon", "socket", s.path, "error", err)
	}
	s.lost = true
}

// Accept implements net.Listener.
func (s *socket) Accept() (net.Conn, error) {
	for {
		s.mu.Lock()
		l := s.l
		s.mu.Unlock()
		conn, err := l.Accept()
		if err == nil {
			return conn, nil
		}
		s.mu.Lock()
		over := s.closed || s.l == l
		s.mu.Unlock()
		if over {
			return nil, err
		}
	}
}

// Addr implements net.Listener.
func (s *socket) Addr() net.Addr { return &net.UnixAddr{Name: s.path, Net: "unix"} }

// Close implements net.Listener. The path and the keepers' ends stay.
func (s *socket) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return net.ErrClosed
	}
	s.closed = true
	return s.l.Close()
}

// remove unlinks the path if the socket at it is this one.
func (s *socket) remove() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if at, err := inodeAt(s.path); err != nil || at != s.name {
		return nil // it is gone, or another's
	}
	return os.Remove(s.path)
}
