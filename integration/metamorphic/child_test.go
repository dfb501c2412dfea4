package metamorphic

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/proxy"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

// roleVariable tells a copy of the test binary what it is.
const roleVariable = "LACUNA_METAMORPHIC_ROLE"

// child is the driver's end of a node process.
type child struct {
	cmd        *exec.Cmd
	conn       *net.UnixConn
	supervisor *supervisor
	stderr     *lockedBuffer
	ended      chan struct{}
	planned    atomic.Bool // its end is the driver's doing

	mu     sync.Mutex // one request at a time
	client *grpc.ClientConn
	Snapshotter
}

// Snapshotter is what containerd's proxy for a snapshotter is.
type Snapshotter interface {
	snapshots.Snapshotter
	snapshots.Cleaner
}

// startChild starts a node process, which serves nothing yet.
func startChild() (*child, error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	ours, theirs := os.NewFile(uintptr(pair[0]), "control"), os.NewFile(uintptr(pair[1]), "control")
	defer theirs.Close()
	defer ours.Close()
	conn, err := net.FileConn(ours)
	if err != nil {
		return nil, err
	}
	c := &child{conn: conn.(*net.UnixConn), stderr: &lockedBuffer{}, ended: make(chan struct{})}
	c.cmd = exec.Command("/proc/self/exe")
	c.cmd.Env = append(os.Environ(), roleVariable+"=node", "GOMAXPROCS=2")
	c.cmd.ExtraFiles = []*os.File{theirs}
	c.cmd.Stderr = c.stderr
	if err := c.cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		_ = c.cmd.Wait()
		close(c.ended)
	}()
	var hello struct{}
	files, err := receiveMessage(c.conn, &hello)
	if err != nil || len(files) != 1 {
		return nil, fmt.Errorf("node did not start: %d descriptors, %w\n%s", len(files), err, c.stderr)
	}
	listener, err := unix.Dup(int(files[0].Fd()))
	if err != nil {
		return nil, err
	}
	unix.CloseOnExec(listener)
	files[0].Close()
	c.supervisor = &supervisor{listener: listener, pid: c.cmd.Process.Pid}
	return c, nil
}

// ask has the node do something.
func (c *child) ask(q request, files ...*os.File) (answer, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	var a answer
	if err := sendMessage(c.conn, q, files...); err != nil {
		return a, fmt.Errorf("node: %w", errDied)
	}
	if _, err := receiveMessage(c.conn, &a); err != nil {
		return a, fmt.Errorf("node: %w", errDied)
	}
	if a.Error != "" {
		return a, errors.New(a.Error)
	}
	return a, nil
}

var errDied = errors.New("the node has died")

// open has it serve a root.
func (c *child) open(q request, group, table *os.File) error {
	_ = os.Remove(q.Socket)
	q.Op = "open"
	if _, err := c.ask(q, group, table); err != nil {
		return err
	}
	client, err := grpc.NewClient("unix://"+q.Socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	c.client = client
	c.Snapshotter = proxy.NewSnapshotter(snapshotsapi.NewSnapshotsClient(client), "lacuna").(Snapshotter)
	return nil
}

// close ends the service gracefully; the process goes on.
func (c *child) close() error {
	if c.client != nil {
		_ = c.client.Close()
		c.client = nil
	}
	_, err := c.ask(request{Op: "close"})
	return err
}

// kill ends the process.
func (c *child) kill() {
	c.planned.Store(true)
	_ = c.cmd.Process.Kill()
	<-c.ended
	_ = c.conn.Close()
	if c.client != nil {
		_ = c.client.Close()
	}
}

// stacks ends the process and returns the stacks of its goroutines.
func (c *child) stacks() string {
	if c.planned.Swap(true) {
		return ""
	}
	_ = c.cmd.Process.Signal(unix.SIGQUIT)
	select {
	case <-c.ended:
	case <-time.After(5 * time.Second):
	}
	return c.stderr.String()
}

func (c *child) dead() bool {
	select {
	case <-c.ended:
		return true
	default:
		return false
	}
}

// lockedBuffer is what a process has written.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// callContext bounds one call: one that takes longer hangs.
func callContext() (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.Background(), patience)
}

// patience is how long a call or a read may take before it counts as hanging.
const patience = 30 * time.Second

// sh runs a script.
func sh(script string, args ...string) error {
	cmd := exec.Command("sh", append([]string{"-ec", script, "sh"}, args...)...)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w\n%s", script, err, out)
	}
	return nil
}

// below lists the mounts at and below a directory, the last made first.
func below(dir string) (list []string, err error) {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	for line := range bytes.Lines(b) {
		fields := bytes.Fields(line)
		if at := string(fields[4]); at == dir || filepath.HasPrefix(at, dir+"/") { //nolint:staticcheck // of whole elements
			list = append([]string{at}, list...)
		}
	}
	return list, nil
}
