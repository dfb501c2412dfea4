package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/lacuna-snapshotter/lacuna/config"
	"github.com/lacuna-snapshotter/lacuna/ondemand/keeper"
)

// sockets are what the daemon listens on. The keepers hold them too: who
// connects while no daemon runs waits for the next one instead of being
// refused.
type sockets struct{ grpc, status *net.UnixListener }

// socketLabel begins the labels of sockets; their path follows.
const socketLabel = "socket "

func openSockets(c *config.Config, set *keeper.Set, found map[string]*os.File) (s *sockets, err error) {
	s = &sockets{}
	for label, f := range found {
		// Of another configuration.
		if path, ok := strings.CutPrefix(label, socketLabel); ok && path != c.Address && path != c.Status {
			if err := errors.Join(set.Drop(label), f.Close()); err != nil {
				return nil, err
			}
		}
	}
	if s.grpc, err = openSocket(c.Address, set, found); err != nil {
		return nil, err
	}
	if s.status, err = openSocket(c.Status, set, found); err != nil {
		return nil, errors.Join(err, s.grpc.Close())
	}
	return s, nil
}

func (s *sockets) labels() []string {
	return []string{socketLabel + s.grpc.Addr().String(), socketLabel + s.status.Addr().String()}
}

// Close closes both; the keepers' ends stay.
func (s *sockets) Close() error { return errors.Join(s.grpc.Close(), s.status.Close()) }

// remove unlinks both: nobody holds them any more.
func (s *sockets) remove() error {
	var errs []error
	for _, l := range []*net.UnixListener{s.grpc, s.status} {
		if err := os.Remove(l.Addr().String()); err != nil && !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// openSocket takes the kept socket of a path, if that is still the one that
// connections come to, or makes it.
func openSocket(path string, set *keeper.Set, found map[string]*os.File) (*net.UnixListener, error) {
	label := socketLabel + path
	if f := found[label]; f != nil {
		l, err := net.FileListener(f)
		err = errors.Join(err, f.Close())
		if unixListener, ok := l.(*net.UnixListener); err == nil && ok && reachable(path) {
			unixListener.SetUnlinkOnClose(false)
			return unixListener, nil
		}
	}
	l, err := listen(path)
	if err != nil {
		return nil, err
	}
	l.SetUnlinkOnClose(false)
	return l, set.KeepFile(label, l)
}

// reachable reports whether a socket that nobody has removed is at path.
func reachable(path string) bool {
	conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: path, Net: "unix"})
	return err == nil && conn.Close() == nil
}

// listen makes a socket that only root can use. One that a dead daemon left is
// replaced: the lock on the root says that it is dead.
func listen(path string) (*net.UnixListener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, err
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	old := unix.Umask(0o177)
	defer unix.Umask(old)
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	return l, nil
}
