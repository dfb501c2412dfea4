package cachefiles

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/lacuna-snapshotter/lacuna/internal/descriptor"
)

// Path is the device.
const Path = "/dev/cachefiles"

// readComplete is CACHEFILES_IOC_READ_COMPLETE, _IOW(0x98, 1, int).
const readComplete = 0x40049801

// Config is how the device is bound.
type Config struct {
	// Dir holds the cache: on ext4, xfs or btrfs, for its extended attributes.
	Dir string
	Tag string // names the cache in /proc/fs/fscache/caches
	// Limits are percentages of the file system's free blocks (B) and files
	// (F): below Stop nothing is added, below Cull the kernel asks for culling,
	// until Run is reached. All zero means the kernel's own. The caller checks that
	// 0 <= Stop < Cull < Run < 100; the kernel refuses anything else.
	Limits Limits
}

// Limits are the culling limits of Config.
type Limits struct {
	BRun, BCull, BStop int
	FRun, FCull, FStop int
}

func (l Limits) commands() []string {
	if l == (Limits{}) {
		return nil
	}
	// Lowest first and, since each command is checked against the values of
	// that moment, run out of the way before.
	return []string{
		"brun 99%", "bcull 98%", fmt.Sprintf("bstop %d%%", l.BStop), fmt.Sprintf("bcull %d%%", l.BCull), fmt.Sprintf("brun %d%%", l.BRun),
		"frun 99%", "fcull 98%", fmt.Sprintf("fstop %d%%", l.FStop), fmt.Sprintf("fcull %d%%", l.FCull), fmt.Sprintf("frun %d%%", l.FRun),
	}
}

// Open opens the device and binds the cache in on-demand mode.
func Open(c Config) (*os.File, error) {
	if err := os.MkdirAll(c.Dir, 0o700); err != nil {
		return nil, err
	}
	// Not through os.OpenFile: its poller and its io.EOF for an empty read do
	// not suit the device.
	fd, err := unix.Open(Path, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w%s", Path, err, openHint(err))
	}
	f := os.NewFile(uintptr(fd), Path)
	d := &device{file: f}
	commands := append([]string{"dir " + c.Dir}, c.Limits.commands()...)
	if c.Tag != "" {
		commands = append(commands, "tag "+c.Tag)
	}
	for _, command := range append(commands, "bind ondemand") {
		if err := d.command(command); err != nil {
			f.Close()
			return nil, fmt.Errorf("%s: %q: %w%s", Path, command, err, bindHint(command, err))
		}
	}
	return f, nil
}

// Restores reports whether a bound device can outlive the daemon that reads it:
// the kernel then hands out again what that one had read and not answered.
func Restores(dev *os.File) bool {
	return (&device{file: dev}).command("restore") == nil
}

func openHint(err error) string {
	switch {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENXIO), errors.Is(err, unix.ENODEV):
		return " (load the module: modprobe cachefiles; the kernel needs CONFIG_CACHEFILES)"
	case errors.Is(err, unix.EBUSY):
		return " (" + holder() + ")"
	}
	return ""
}

func bindHint(command string, err error) string {
	switch {
	case command != "bind ondemand":
		return ""
	case errors.Is(err, unix.EINVAL):
		return " (the kernel needs CONFIG_CACHEFILES_ONDEMAND)"
	case errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.EPERM):
		return " (the cache's directory must be on a file system with extended attributes and sync, such as ext4, xfs or btrfs)"
	}
	return ""
}

// holder names who has the device open.
func holder() string {
	links, _ := filepath.Glob("/proc/[0-9]*/fd/*")
	for _, link := range links {
		if target, err := os.Readlink(link); err == nil && target == Path {
			pid := strings.Split(link, "/")[2]
			name, _ := os.ReadFile("/proc/" + pid + "/comm")
			return fmt.Sprintf("process %s, %q, has it open", pid, strings.TrimSpace(string(name)))
		}
	}
	return "it can be open once, and descriptors of an earlier cache are still held"
}

// kernel is the device as the server uses it. Tests script one.
type kernel interface {
	// wait returns when there may be requests or culling is asked for. It
	// returns errWoken after wake.
	wait() (cull bool, err error)
	wake()
	// read gets one request; zero bytes mean that there is none.
	read(p []byte) (int, error)
	// command writes a command; commandIn does so with a working directory.
	command(s string) error
	commandIn(dir, s string) error
	// culling reports whether culling is asked for now.
	culling() bool
	// complete answers a READ in mainline's way.
	complete(fd int, id uint32) error
	close() error
}

var errWoken = errors.New("woken")

// device is the kernel.
type device struct {
	file  *os.File
	epoll int
	event int
}

// newDevice watches a bound device.
func newDevice(f *os.File) (_ *device, err error) {
	d := &device{file: f}
	if d.epoll, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return nil, fmt.Errorf("epoll_create: %w", err)
	}
	if d.event, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
		unix.Close(d.epoll)
		return nil, fmt.Errorf("eventfd: %w", err)
	}
	// Edge-triggered: kernels before 6.6 report POLLIN as long as a request is
	// outstanding, and all report POLLOUT as long as culling may help.
	return d, errors.Join(
		unix.EpollCtl(d.epoll, unix.EPOLL_CTL_ADD, d.event, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(d.event)}),
		d.control(func(fd int) error {
			e := &unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLOUT | unix.EPOLLET, Fd: int32(fd)}
			return unix.EpollCtl(d.epoll, unix.EPOLL_CTL_ADD, fd, e)
		}),
	)
}

func (d *device) wait() (cull bool, err error) {
	var events [2]unix.EpollEvent
	n, err := unix.EpollWait(d.epoll, events[:], -1)
	for errors.Is(err, unix.EINTR) {
		n, err = unix.EpollWait(d.epoll, events[:], -1)
	}
	if err != nil {
		return false, fmt.Errorf("epoll_wait: %w", err)
	}
	for _, e := range events[:n] {
		if int(e.Fd) == d.event {
			return false, errWoken
		}
		cull = cull || e.Events&unix.EPOLLOUT != 0
	}
	return cull, nil
}

func (d *device) wake() {
	_, _ = unix.Write(d.event, []byte{1, 0, 0, 0, 0, 0, 0, 0}) // a full counter wakes as well
}

// read holds the lock that keeps other goroutines from forking: a descriptor
// that comes with an OPEN is not close-on-exec, and a leak into a child would
// keep the cache alive.
func (d *device) read(p []byte) (n int, err error) {
	err = d.control(func(fd int) error {
		syscall.ForkLock.RLock()
		defer syscall.ForkLock.RUnlock()
		var err error
		if n, err = unix.Read(fd, p); err != nil || n < mainlineData+openFixed {
			return err
		}
		for _, dialect := range []Dialect{Mainline, V5} {
			if m, err := decode(p[:n], dialect); err == nil && m.op == opOpen {
				unix.CloseOnExec(m.fd)
			}
		}
		return nil
	})
	return n, err
}

func (d *device) command(s string) error {
	return d.control(func(fd int) error {
		_, err := unix.Write(fd, []byte(s))
		return err
	})
}

func (d *device) control(f func(fd int) error) error { return descriptor.Use(d.file, f) }

func (d *device) complete(fd int, id uint32) error {
	return unix.IoctlSetInt(fd, readComplete, int(id))
}

func (d *device) close() error {
	return errors.Join(unix.Close(d.epoll), unix.Close(d.event), d.file.Close())
}

func (d *device) culling() (asked bool) {
	_ = d.control(func(fd int) error {
		p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}
		_, err := unix.Poll(p, 0)
		asked = err == nil && p[0].Revents&unix.POLLOUT != 0
		return err
	})
	return asked
}

// commandIn runs on a thread of its own, whose working directory is dir: the
// cull and inuse commands name files of the working directory.
func (d *device) commandIn(dir, s string) error {
	done := make(chan error, 1)
	go func() {
		// Never unlocked: the thread ends with the goroutine. The process's
		// first thread would stay, so it leaves the directory anyway.
		runtime.LockOSThread()
		if err := unix.Unshare(unix.CLONE_FS); err != nil {
			done <- fmt.Errorf("unshare: %w", err)
			return
		}
		if err := unix.Chdir(dir); err != nil {
			done <- &os.PathError{Op: "chdir", Path: dir, Err: err}
			return
		}
		err := d.command(s)
		done <- errors.Join(err, unix.Chdir("/"))
	}()
	return <-done
}
