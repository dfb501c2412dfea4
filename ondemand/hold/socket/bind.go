package socket

import (
	"context"
	"errors"
	"net"
	"syscall"

	"golang.org/x/sys/unix"
)

// Bind creates a listening Unix socket at a path, "unix" or "unixpacket", that only
// root can use. The caller removes the path.
//
// bind(2) creates the file with the mode of the socket (unix_bind_bsd in
// net/unix/af_unix.c). So it never has another mode, and the umask, which belongs to
// the whole process and to the files that it creates at the same time, need not change.
func Bind(network, path string) (*net.UnixListener, error) {
	c := net.ListenConfig{Control: func(_, _ string, conn syscall.RawConn) (err error) {
		return errors.Join(conn.Control(func(fd uintptr) { err = unix.Fchmod(int(fd), 0o600) }), err)
	}}
	made, err := c.Listen(context.Background(), network, path)
	if err != nil {
		return nil, err
	}
	l, _ := made.(*net.UnixListener) // as those of Unix sockets are
	l.SetUnlinkOnClose(false)
	return l, nil
}
