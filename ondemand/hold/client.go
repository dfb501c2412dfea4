package hold

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Keeper is the daemon's end of a living keeper.
type Keeper struct {
	conn    *net.UnixConn
	answers chan packet
	dead    chan struct{} // closed when the keeper has gone

	mu sync.Mutex // one command at a time
}

// ErrNone says that no keeper is there.
var ErrNone = errors.New("no keeper")

// errDead says that the keeper has gone or does not answer.
var errDead = errors.New("the keeper is dead")

// Connect finds the keeper that listens on a socket.
func Connect(socket string) (*Keeper, error) {
	conn, err := net.DialUnix("unixpacket", nil, &net.UnixAddr{Name: socket, Net: "unixpacket"})
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ECONNREFUSED) {
		return nil, ErrNone
	}
	if err != nil {
		return nil, err
	}
	k := &Keeper{conn: conn, answers: make(chan packet), dead: make(chan struct{})}
	go k.read()
	return k, nil
}

func (k *Keeper) read() {
	defer close(k.dead)
	for {
		p, err := receive(k.conn)
		if err != nil {
			return
		}
		select {
		case k.answers <- p:
		case <-time.After(patience):
			p.close()
			return // nobody has asked
		}
	}
}

// Dead is closed when the keeper has gone.
func (k *Keeper) Dead() <-chan struct{} { return k.dead }

// command sends and collects the answers. What it returns is the caller's.
func (k *Keeper) command(kind byte, label string, fd int) (list []packet, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	defer func() {
		if err != nil {
			for _, p := range list {
				p.close()
			}
			list = nil
		}
	}()
	if err := send(k.conn, kind, label, fd); err != nil {
		return nil, fmt.Errorf("%w: %w", errDead, err)
	}
	for {
		select {
		case p := <-k.answers:
			switch p.kind {
			case ansHeld:
				list = append(list, p)
			case ansDone:
				return list, nil
			default:
				return list, errors.New("the keeper has no room")
			}
		case <-k.dead:
			return list, errDead
		case <-time.After(patience):
			k.conn.Close()
			return list, errDead
		}
	}
}

// Keep has the keeper hold a duplicate of a descriptor under a label, in place
// of what it held under that.
func (k *Keeper) Keep(label string, fd int) error {
	_, err := k.command(cmdKeep, label, fd)
	return err
}

// Drop has the keeper close what it holds under a label.
func (k *Keeper) Drop(label string) error {
	_, err := k.command(cmdDrop, label, -1)
	return err
}

// Held is a duplicate of what a keeper holds under a label.
type Held struct {
	Label string
	File  *os.File
}

// Take returns duplicates of all that the keeper holds, in the order in which it
// was given them.
func (k *Keeper) Take() ([]Held, error) {
	list, err := k.command(cmdTake, "", -1)
	if err != nil {
		return nil, err
	}
	var held []Held
	for _, p := range list {
		if p.file != nil {
			held = append(held, Held{p.label, p.file})
		}
	}
	return held, nil
}

// Leave ends the connection; the keeper lives on.
func (k *Keeper) Leave() error { return k.conn.Close() }

// End ends the keeper.
func (k *Keeper) End() error {
	_, err := k.command(cmdEnd, "", -1)
	if err == nil {
		<-k.dead
	}
	return errors.Join(err, k.conn.Close())
}

// Start starts a keeper that holds nothing yet and listens on socket. Args is
// the command line of this binary that leads to Run.
func Start(socket string, args ...string) (*Keeper, error) {
	if err := os.Remove(socket); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	l, err := listen(socket)
	if err != nil {
		return nil, err
	}
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
	cmd.ExtraFiles = []*os.File{listener}
	cmd.SysProcAttr = &unix.SysProcAttr{Setsid: true} // the daemon's signals are not for it
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start keeper: %w", err)
	}
	// Where it is allowed, the kernel's killer of memory hogs passes it by.
	_ = os.WriteFile(fmt.Sprintf("/proc/%d/oom_score_adj", cmd.Process.Pid), []byte("-999"), 0)
	go func() { _ = cmd.Wait() }() // no zombie while we live
	return Connect(socket)
}

// listen makes a socket that only its owner can use. The umask stays as it is: it is
// the whole process's, which makes other files at the same time. bind(2) gives the
// file the mode of the socket's own inode (net/unix/af_unix.c, unix_bind_bsd).
func listen(path string) (*net.UnixListener, error) {
	c := net.ListenConfig{Control: func(_, _ string, conn syscall.RawConn) (err error) {
		return errors.Join(conn.Control(func(fd uintptr) { err = unix.Fchmod(int(fd), 0o600) }), err)
	}}
	l, err := c.Listen(context.Background(), "unixpacket", path)
	if err != nil {
		return nil, err
	}
	listener, _ := l.(*net.UnixListener) // as unixpacket's are
	listener.SetUnlinkOnClose(false)
	return listener, nil
}
