package hold

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lacuna-snapshotter/lacuna/ondemand/hold/socket"
)

// keeper is the daemon's end of a keeper process.
type keeper struct {
	conn    *net.UnixConn
	answers chan packet
	dead    chan struct{} // closed when the keeper has ended, or counts as dead

	mu sync.Mutex // one command at a time
}

// errNone says that no keeper listens on a socket.
var errNone = errors.New("no keeper")

// errDead says that the keeper has ended or does not answer.
var errDead = errors.New("the keeper is dead")

// connect finds the keeper that listens on a socket.
func connect(path string) (*keeper, error) {
	conn, err := net.DialUnix("unixpacket", nil, &net.UnixAddr{Name: path, Net: "unixpacket"})
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ECONNREFUSED) {
		return nil, errNone
	}
	if err != nil {
		return nil, err
	}
	k := &keeper{conn: conn, answers: make(chan packet), dead: make(chan struct{})}
	go k.read()
	return k, nil
}

func (k *keeper) read() {
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
			return // no command waits for it
		}
	}
}

var _ holder = (*keeper)(nil)

func (k *keeper) alive() bool {
	select {
	case <-k.dead:
		return false
	default:
		return true
	}
}

// command sends a command and collects its answers. The files in them are the
// caller's.
func (k *keeper) command(kind byte, label string, fd int) (list []packet, err error) {
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
	if !k.alive() {
		return nil, errDead
	}
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
			// Not Close: see dismiss.
			return list, errors.Join(errDead, k.conn.CloseRead())
		}
	}
}

func (k *keeper) hold(label string, fd int) error {
	_, err := k.command(cmdHold, label, fd)
	return err
}

func (k *keeper) release(label string) error {
	_, err := k.command(cmdRelease, label, -1)
	return err
}

func (k *keeper) adopt() (all []held, err error) {
	list, err := k.command(cmdAdopt, "", -1)
	if err != nil {
		return nil, err
	}
	for _, p := range list {
		if p.file != nil {
			all = append(all, held{p.label, p.file})
		}
	}
	return all, nil
}

func (k *keeper) leave() error { return k.conn.Close() }

func (k *keeper) end() error {
	_, err := k.command(cmdEnd, "", -1)
	if err != nil {
		k.dismiss()
		return err
	}
	<-k.dead
	return k.conn.Close()
}

// dismiss has a keeper that counts as dead end if it is not: one that was stopped, or
// had no memory, finds the command when it runs again. No daemon could tell it then,
// since the path of its socket is another keeper's.
func (k *keeper) dismiss() {
	_ = send(k.conn, cmdEnd, "", -1) // fails where it has ended
	k.conn.Close()
}

// startKeeper starts a keeper that holds nothing yet and listens at path. Args is
// the command line of this binary that leads to RunKeeper.
func startKeeper(path string, args ...string) (*keeper, error) {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	l, err := socket.Bind("unixpacket", path)
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
	// Where the daemon may, it has the OOM killer choose other processes first.
	_ = os.WriteFile(fmt.Sprintf("/proc/%d/oom_score_adj", cmd.Process.Pid), []byte("-999"), 0)
	go func() { _ = cmd.Wait() }() // no zombie while we live
	return connect(path)
}
