package keeper

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"time"

	"golang.org/x/sys/unix"
)

const (
	cmdTake = 't'
	cmdEnd  = 'e'

	// The descriptors that a keeper inherits: standard ones, its listener, and
	// those it holds.
	listenerFD = 3
	firstHeld  = 4

	maxHeld = 16
)

// Run is the keeper's life. It returns when it is told to end.
func Run(held int) error {
	if held < 1 || held > maxHeld {
		return fmt.Errorf("keeper: %d descriptors", held)
	}
	f := os.NewFile(listenerFD, "listener")
	listener, err := net.FileListener(f)
	if err != nil {
		return fmt.Errorf("keeper: started by hand? %w", err)
	}
	f.Close()
	fds := make([]int, held)
	for i := range fds {
		fds[i] = firstHeld + i
		unix.CloseOnExec(fds[i])
	}
	for {
		conn, err := listener.Accept()
		if err != nil {
			return err
		}
		end, err := answer(conn.(*net.UnixConn), fds)
		if err != nil || end {
			conn.Close()
		}
		if end {
			return nil
		}
		// Else the connection stays open: its end tells the daemon of ours.
	}
}

func answer(conn *net.UnixConn, fds []int) (end bool, err error) {
	if err := conn.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
		return false, err
	}
	var cmd [1]byte
	if _, err := conn.Read(cmd[:]); err != nil {
		return false, err
	}
	switch cmd[0] {
	case cmdEnd:
		return true, nil
	case cmdTake:
		_, _, err := conn.WriteMsgUnix([]byte{cmdTake}, unix.UnixRights(fds...), nil)
		return false, err
	}
	return false, fmt.Errorf("keeper: command %q", cmd[0])
}

// Keeper is the daemon's side of a living keeper.
type Keeper struct {
	socket string
	conn   *net.UnixConn
}

// ErrNone says that no keeper is there.
var ErrNone = errors.New("no keeper")

// Take gets the descriptors that a keeper holds, close-on-exec. It fails with
// ErrNone where there is none.
func Take(socket string) (*Keeper, []*os.File, error) {
	c, err := dial(socket)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ECONNREFUSED) {
		return nil, nil, ErrNone
	}
	if err != nil {
		return nil, nil, err
	}
	files, err := receive(c)
	if err != nil {
		c.Close()
		return nil, nil, fmt.Errorf("take from the keeper at %s: %w", socket, err)
	}
	return &Keeper{socket, c}, files, nil
}

func dial(socket string) (*net.UnixConn, error) {
	return net.DialUnix("unix", nil, &net.UnixAddr{Name: socket, Net: "unix"})
}

func receive(conn *net.UnixConn) ([]*os.File, error) {
	if err := conn.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
		return nil, err
	}
	if _, err := conn.Write([]byte{cmdTake}); err != nil {
		return nil, err
	}
	b, oob := make([]byte, 1), make([]byte, unix.CmsgSpace(4*maxHeld))
	// The net package receives with MSG_CMSG_CLOEXEC.
	_, n, _, _, err := conn.ReadMsgUnix(b, oob)
	if err != nil {
		return nil, err
	}
	messages, err := unix.ParseSocketControlMessage(oob[:n])
	if err != nil || len(messages) != 1 {
		return nil, fmt.Errorf("%d control messages: %w", len(messages), err)
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil {
		return nil, err
	}
	files := make([]*os.File, len(fds))
	for i, fd := range fds {
		files[i] = os.NewFile(uintptr(fd), "kept")
	}
	return files, conn.SetDeadline(time.Time{})
}

// Start starts a keeper that holds files and listens on socket. Args is the
// command line of this binary that leads to Run with len(files).
func Start(socket string, files []*os.File, args ...string) (*Keeper, error) {
	if err := os.Remove(socket); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	old := unix.Umask(0o177)
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
	unix.Umask(old)
	if err != nil {
		return nil, err
	}
	l.SetUnlinkOnClose(false)
	defer l.Close()
	listener, err := l.File()
	if err != nil {
		return nil, err
	}
	defer listener.Close()
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(self, args...) //nolint:noctx // it outlives every context of ours
	cmd.Dir = "/"
	cmd.Stderr = os.Stderr
	cmd.ExtraFiles = append([]*os.File{listener}, files...)
	cmd.SysProcAttr = &unix.SysProcAttr{Setsid: true} // the daemon's signals are not for it
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start keeper: %w", err)
	}
	go func() { _ = cmd.Wait() }() // no zombie while we live
	k, taken, err := Take(socket)
	for _, f := range taken {
		f.Close() // we have them
	}
	return k, err
}

// Wait returns when the keeper is dead, or after Leave.
func (k *Keeper) Wait() {
	var b [1]byte
	_, _ = k.conn.Read(b[:])
}

// Leave ends the connection; the keeper lives on.
func (k *Keeper) Leave() error { return k.conn.Close() }

// End ends the keeper.
func (k *Keeper) End() error {
	k.conn.Close()
	conn, err := dial(k.socket)
	if err != nil {
		return err
	}
	defer conn.Close()
	if _, err := conn.Write([]byte{cmdEnd}); err != nil {
		return err
	}
	var b [1]byte
	_, _ = conn.Read(b[:]) // until it has gone
	return os.Remove(k.socket)
}
