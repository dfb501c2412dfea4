package harness

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Proc is a process of an environment, with its output in a file.
type Proc struct {
	name string
	cmd  *exec.Cmd
	log  string
	done chan struct{}
	err  error
}

// start runs a program until Close.
func (e *Env) start(name string, args ...string) (*Proc, error) {
	log := e.Path(fmt.Sprintf("%s.%d.log", name, len(e.procs)))
	out, err := os.Create(log)
	if err != nil {
		return nil, err
	}
	defer out.Close()
	cmd := e.command(context.Background(), name, args...)
	cmd.Stdout, cmd.Stderr = out, out
	cmd.Env = append(cmd.Env, e.Environ...)
	cmd.SysProcAttr = &unix.SysProcAttr{Setpgid: true} // an interrupt is ours to pass on
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	p := &Proc{name: name, cmd: cmd, log: log, done: make(chan struct{})}
	go func() {
		p.err = cmd.Wait()
		close(p.done)
	}()
	e.procs = append(e.procs, p)
	e.onClose(func() error { return p.Stop() })
	return p, nil
}

// Stop ends the process as a service manager would.
func (p *Proc) Stop() error {
	select {
	case <-p.done:
		return nil
	default:
	}
	_ = p.cmd.Process.Signal(unix.SIGTERM)
	select {
	case <-p.done:
		return nil
	case <-time.After(30 * time.Second):
		p.Kill()
		return fmt.Errorf("%s did not stop within 30 s:\n%s", p.name, p.Tail())
	}
}

// Kill ends the process at once.
func (p *Proc) Kill() {
	_ = p.cmd.Process.Kill()
	<-p.done
}

// Done is closed when the process has ended.
func (p *Proc) Done() <-chan struct{} { return p.done }

// PID is the process's identifier.
func (p *Proc) PID() int { return p.cmd.Process.Pid }

// Log is all that the process has printed.
func (p *Proc) Log() string {
	b, _ := os.ReadFile(p.log)
	return string(b)
}

// Tail is the end of the log.
func (p *Proc) Tail() string {
	lines := strings.Split(strings.TrimSpace(p.Log()), "\n")
	return strings.Join(lines[max(0, len(lines)-20):], "\n")
}

// PeakRSS is the most memory the process has had resident, in bytes.
func (p *Proc) PeakRSS() (int64, error) { return memory(p.PID(), "VmHWM:") }

func memory(pid int, field string) (int64, error) {
	b, err := os.ReadFile(filepath.Join("/proc", fmt.Sprint(pid), "status"))
	if err != nil {
		return 0, err
	}
	for line := range strings.SplitSeq(string(b), "\n") {
		if rest, ok := strings.CutPrefix(line, field); ok {
			var kib int64
			_, err := fmt.Sscan(rest, &kib)
			return kib << 10, err
		}
	}
	return 0, errors.New("no " + field)
}

// waitSocket returns when a process accepts connections.
func (p *Proc) waitSocket(network, address string) error {
	for deadline := time.Now().Add(60 * time.Second); time.Now().Before(deadline); {
		conn, err := net.DialTimeout(network, address, time.Second)
		if err == nil {
			return conn.Close()
		}
		select {
		case <-p.done:
			return fmt.Errorf("%s ended: %w\n%s", p.name, p.err, p.Tail())
		case <-time.After(10 * time.Millisecond):
		}
	}
	return fmt.Errorf("%s does not listen on %s:\n%s", p.name, address, p.Tail())
}

// freePort finds a loopback port that is not in use now.
func freePort() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	return l.Addr().String(), l.Close()
}
