package socket

import (
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
	"github.com/lacuna-snapshotter/lacuna/ondemand/hold/lock"
)

// Holder holds sockets for the next daemon: see package hold.
type Holder interface {
	HoldFile(label string, f syscall.Conn) error
	Release(label string) error
}

// Listener is a net.Listener at a path that is locked for this daemon. When the socket
// at the path has to be created again, Accept goes on with that.
type Listener struct {
	path, root string
	lock       *lock.Lock
	holder     Holder

	mu     sync.Mutex
	l      *net.UnixListener
	name   lock.Inode // of the path when l was put there
	lost   bool       // the path is not l's, which was logged
	closed bool
}

// open locks a path, and adopts the held socket that is at it or creates one. Held,
// nil where none is, is closed. A path is left alone on which another program answers,
// or a daemon of another root or its holders, which wait for that daemon.
func open(path, root string, h Holder, held *os.File) (s *Listener, err error) {
	if held != nil {
		defer held.Close()
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, err
	}
	taken, err := lock.Take(lockOf(path), lock.Patience)
	if errors.Is(err, lock.ErrLocked) {
		err = fmt.Errorf("socket %s is in use: %w: give this one another address, or stop the other", path, err)
	}
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			taken.Unlock()
		}
	}()
	s = &Listener{path: path, root: root, lock: taken, holder: h}
	last, known := taken.Owner()
	if held != nil && s.adopt(held, last, known) {
		return s, s.setOwner(s.l, s.name)
	}
	if err := vacant(path, root, last, known); err != nil {
		return nil, err
	}
	return s, s.listen()
}

// lockOf is the lock file of a socket.
func lockOf(path string) string { return path + ".lock" }

// adopt adopts a held socket if connections to the path come to it.
func (s *Listener) adopt(held *os.File, last lock.Owner, known bool) bool {
	number, err := socketNumber(held)
	if err != nil {
		return false
	}
	if s.name, err = lock.InodeAt(s.path); err != nil {
		return false
	}
	if known && (last.Socket != number || last.Name != s.name) {
		return false
	}
	if !known && !answers(s.path) {
		return false
	}
	l, err := net.FileListener(held)
	if err != nil {
		return false
	}
	s.l, _ = l.(*net.UnixListener)
	return s.l != nil
}

// vacant fails unless a socket may be created at a path: nothing is there, or a socket
// on which no process listens, or one of this root.
func vacant(path, root string, last lock.Owner, known bool) error {
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
	at, err := lock.InodeAt(path)
	if err != nil {
		return err
	}
	ours := known && last.Name == at
	switch {
	case ours && last.Root == root || !answers(path):
		return nil
	case ours:
		return fmt.Errorf("socket %s is held for the daemon with root %s, which has layers mounted: start that one, or give this one another address", path, last.Root)
	}
	return fmt.Errorf("another program listens on socket %s: give another address", path)
}

// answers reports whether a process listens at a path, also one whose queue of
// connections is full.
func answers(path string) bool {
	conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: path, Net: "unix"})
	if err == nil {
		conn.Close()
	}
	return err == nil || errors.Is(err, unix.EAGAIN)
}

// listen creates a socket at the path that only root can use.
func (s *Listener) listen() error {
	if err := os.Remove(s.path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	l, err := Bind("unix", s.path)
	if err != nil {
		return fmt.Errorf("listen on %s: %w", s.path, err)
	}
	name, err := lock.InodeAt(s.path)
	if err == nil {
		err = errors.Join(s.setOwner(l, name), s.holder.HoldFile(Label(s.path), l))
	}
	if err != nil {
		return errors.Join(err, os.Remove(s.path), l.Close())
	}
	s.l, s.name = l, name
	return nil
}

// setOwner writes into the lock file which socket is at the path.
func (s *Listener) setOwner(l *net.UnixListener, name lock.Inode) error {
	number, err := socketNumber(l)
	if err != nil {
		return err
	}
	return s.lock.SetOwner(lock.Owner{Root: s.root, PID: os.Getpid(), Socket: number, Name: name})
}

func socketNumber(c syscall.Conn) (uint64, error) {
	var st unix.Stat_t
	err := descriptor.Use(c, func(fd int) error { return unix.Fstat(fd, &st) })
	return st.Ino, err
}

// look creates the socket again if its path was removed.
func (s *Listener) look(log *slog.Logger) {
	s.mu.Lock()
	defer s.mu.Unlock()
	at, err := lock.InodeAt(s.path)
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
		log.Warn("a socket's file was removed; it was created again", "socket", s.path)
	case err != nil:
		s.warnOnce(log, err)
	default:
		s.warnOnce(log, errors.New("another file is at its path; the socket is created again when that is gone"))
	}
}

// listenAgain is listen where the directory may have been removed too, and the lock
// with it.
func (s *Listener) listenAgain() error {
	if err := os.MkdirAll(filepath.Dir(s.path), 0o700); err != nil {
		return err
	}
	if !s.lock.At(lockOf(s.path)) {
		l, err := lock.Take(lockOf(s.path), 0)
		if err != nil {
			return err
		}
		s.lock.Unlock()
		s.lock = l
	}
	return s.listen()
}

func (s *Listener) warnOnce(log *slog.Logger, err error) {
	if !s.lost {
		log.Error("clients cannot connect to a socket of this daemon", "socket", s.path, "error", err)
	}
	s.lost = true
}

// Accept implements net.Listener.
func (s *Listener) Accept() (net.Conn, error) {
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
func (s *Listener) Addr() net.Addr { return &net.UnixAddr{Name: s.path, Net: "unix"} }

// Close implements net.Listener. The path and the holders' duplicates stay.
func (s *Listener) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return net.ErrClosed
	}
	s.closed = true
	return s.l.Close()
}

// remove unlinks the path if the socket at it is this one.
func (s *Listener) remove() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if at, err := lock.InodeAt(s.path); err != nil || at != s.name {
		return nil // the path is gone, or another program's
	}
	return os.Remove(s.path)
}
