package harness

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lacuna-snapshotter/lacuna/ondemand/hold"
)

// Env is a directory with the processes that work in it.
type Env struct {
	Dir    string
	Bin    string // our commands and the pinned tools
	Source string // the top directory of the source; empty in a VM

	// Daemon is the program that StartDaemon runs, lacuna-snapshotter where it is
	// empty; Environ are variables that it gets besides this process's.
	Daemon  string
	Environ []string

	// Capabilities are those that StartContainerd says our plugin has, such as
	// remap-ids.
	Capabilities []string

	procs   []*Proc
	closers []func() error
}

// parent holds all environments: on a file system that supports pre-content
// events, which /tmp may not be.
const parent = "/var/tmp"

const prefix = "lacuna-env-"

// DaemonRoot is the daemon's root in an environment.
const DaemonRoot = "lacuna"

// FromSource makes an environment of what make tools has built. The working directory is
// the top of the source, or below it.
func FromSource() (*Env, error) {
	top, err := os.Getwd()
	if err != nil {
		return nil, err
	}
	for {
		if _, err := os.Stat(filepath.Join(top, "Makefile")); err == nil {
			break
		}
		if top == filepath.Dir(top) {
			return nil, errors.New("no Makefile in the working directory or above it")
		}
		top = filepath.Dir(top)
	}
	e, err := New(filepath.Join(top, ".cache", "bin"))
	if err != nil {
		return nil, err
	}
	e.Source = top
	return e, nil
}

// New makes an environment. Bin has the commands that make tools builds.
func New(bin string) (*Env, error) {
	for _, name := range []string{"containerd", "ctr", "containerd-shim-runc-v2", "registry", "lacuna-snapshotter", "lacunactl"} {
		if _, err := os.Stat(filepath.Join(bin, name)); err != nil {
			return nil, fmt.Errorf("%w (run make tools)", err)
		}
	}
	if err := sweep(); err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp(parent, fmt.Sprintf("%s%d-", prefix, os.Getpid()))
	if err != nil {
		return nil, err
	}
	// The mode of /run and /var/lib: what is below has modes of its own, and root in a
	// user namespace must reach its root file system.
	if err := os.Chmod(dir, 0o711); err != nil {
		return nil, err
	}
	return &Env{Dir: dir, Bin: bin}, nil
}

// sweep removes environments whose process is gone.
func sweep() error {
	dirs, err := filepath.Glob(filepath.Join(parent, prefix+"*"))
	if err != nil {
		return err
	}
	for _, dir := range dirs {
		pid, _, _ := strings.Cut(strings.TrimPrefix(filepath.Base(dir), prefix), "-")
		if n, err := strconv.Atoi(pid); err != nil || unix.Kill(n, 0) == nil {
			continue
		}
		if err := destroy(dir); err != nil {
			return err
		}
	}
	return nil
}

// destroy ends what works in an environment and removes it.
func destroy(dir string) error {
	// Kills do not end an anchor.
	err := hold.EndAnchors(filepath.Join(dir, DaemonRoot))
	killAll(dir)
	return errors.Join(err, unmountBelow(dir), os.RemoveAll(dir))
}

// killAll kills the processes whose command line names the directory: shims
// and daemons that a killed run left. Nothing else has its name.
func killAll(dir string) {
	deadline := time.Now().Add(10 * time.Second)
	for {
		left := 0
		entries, _ := filepath.Glob("/proc/[0-9]*/cmdline")
		for _, path := range entries {
			b, err := os.ReadFile(path)
			if err != nil || !bytes.Contains(b, []byte(dir+"/")) {
				continue
			}
			pid, err := strconv.Atoi(filepath.Base(filepath.Dir(path)))
			if err != nil || pid == os.Getpid() {
				continue
			}
			left++
			_ = unix.Kill(pid, unix.SIGKILL)
		}
		if left == 0 || time.Now().After(deadline) {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// Mounts lists the mountpoints below a directory, the last mounted first.
func Mounts(dir string) ([]string, error) {
	b, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		return nil, err
	}
	var list []string
	for line := range strings.SplitSeq(string(b), "\n") {
		fields := strings.Fields(line)
		if len(fields) > 1 && strings.HasPrefix(fields[1], dir+"/") {
			list = append(list, fields[1])
		}
	}
	slices.Reverse(list)
	return list, nil
}

// WaitUnmounted waits, for a minute at most, until no more than so many mounts are left
// below a directory: containerd calls our Cleanup a little after the garbage collection.
func WaitUnmounted(dir string, most int) error {
	var mounts []string
	for range 600 {
		var err error
		if mounts, err = Mounts(dir); err != nil || len(mounts) <= most {
			return err
		}
		time.Sleep(100 * time.Millisecond)
	}
	return fmt.Errorf("still mounted: %q", mounts)
}

func unmountBelow(dir string) error {
	list, err := Mounts(dir)
	if err != nil {
		return err
	}
	for _, m := range list {
		if err := unix.Unmount(m, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) {
			return fmt.Errorf("unmount %s: %w", m, err)
		}
	}
	return nil
}

// Path joins names to the environment's directory.
func (e *Env) Path(names ...string) string {
	return filepath.Join(append([]string{e.Dir}, names...)...)
}

// Namespace is containerd's namespace for what ctr does. It is part of each
// container's cgroup: two environments with a container of the same name would kill
// each other's.
func (e *Env) Namespace() string { return filepath.Base(e.Dir) }

// onClose registers what Close does, last first.
func (e *Env) onClose(f func() error) { e.closers = append(e.closers, f) }

// Close ends everything. It may be called twice.
func (e *Env) Close() error {
	var errs []error
	for _, f := range slices.Backward(e.closers) {
		errs = append(errs, f())
	}
	e.closers = nil
	return errors.Join(append(errs, destroy(e.Dir))...)
}

// Run runs a command of Bin, or of the system, and returns its output.
func (e *Env) Run(ctx context.Context, name string, args ...string) (string, error) {
	cmd := e.command(ctx, name, args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return string(out), fmt.Errorf("%s %s: %w\n%s%s", name, strings.Join(args, " "), err, out, stderr.String())
	}
	return string(out), nil
}

// runPeak is Run that also returns the command's peak resident memory, in bytes. It
// reads /proc again and again while the command runs: what wait4 reports also counts
// the memory of this process, which the command shared until its exec.
func (e *Env) runPeak(ctx context.Context, name string, args ...string) (out string, rss int64, err error) {
	cmd := e.command(ctx, name, args...)
	var b, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &b, &stderr
	if err := cmd.Start(); err != nil {
		return "", 0, err
	}
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case err := <-done:
			if err != nil {
				err = fmt.Errorf("%s %s: %w\n%s%s", name, strings.Join(args, " "), err, b.String(), stderr.String())
			}
			return b.String(), rss, err
		case <-tick.C:
			if peak, err := memory(cmd.Process.Pid, "VmHWM:"); err == nil {
				rss = peak // it never falls
			}
		}
	}
}

func (e *Env) command(ctx context.Context, name string, args ...string) *exec.Cmd {
	path := filepath.Join(e.Bin, name)
	if _, err := os.Stat(path); err != nil {
		path = name
	}
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Env = append(os.Environ(), "PATH="+e.Bin+":"+os.Getenv("PATH"), "CONTAINERD_NAMESPACE="+e.Namespace())
	return cmd
}

// DropCaches empties the machine's page, dentry and inode caches.
func DropCaches() error {
	unix.Sync()
	return os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0)
}
