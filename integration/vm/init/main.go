// Command init is the first process of a test VM: it loads the modules of its
// initramfs, goes over to the root file system on the first disk, runs
// /payload/guest.sh of the second one, tells how that ended on the console, and
// switches the machine off.
package main

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

func main() {
	code, err := run()
	if err != nil {
		fmt.Println("init:", err)
		code = 1
	}
	fmt.Printf("\nVM EXIT %d\n", code)
	unix.Sync()
	time.Sleep(100 * time.Millisecond) // for the console
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
}

func run() (code int, err error) {
	if err := loadModules("/modules"); err != nil {
		return 1, err
	}
	for _, m := range []struct{ source, target, kind, options string }{
		{"devtmpfs", "/dev", "devtmpfs", ""},
		{"/dev/vda", "/root", "ext4", ""},
		{"/dev/vdb", "/root/payload", "ext4", ""},
		{"proc", "/root/proc", "proc", ""},
		{"sysfs", "/root/sys", "sysfs", ""},
		{"devtmpfs", "/root/dev", "devtmpfs", ""},
		{"cgroup2", "/root/sys/fs/cgroup", "cgroup2", ""},
		{"tmpfs", "/root/run", "tmpfs", ""},
	} {
		if err := os.MkdirAll(m.target, 0o755); err != nil {
			return 1, err
		}
		if err := mount(m.source, m.target, m.kind, m.options); err != nil {
			return 1, fmt.Errorf("mount %s at %s: %w", m.source, m.target, err)
		}
	}
	// A root of our own: overlayfs and runc do not like the initramfs.
	if err := errors.Join(unix.Chdir("/root"), unix.Mount(".", "/", "", unix.MS_MOVE, ""), unix.Chroot("."), unix.Chdir("/")); err != nil {
		return 1, fmt.Errorf("change root: %w", err)
	}
	if err := loopbackUp(); err != nil {
		return 1, err
	}
	cmd := exec.Command("/bin/sh", "/payload/guest.sh")
	cmd.Env = []string{"PATH=/payload/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "CI=true"}
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	err = cmd.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return exit.ExitCode(), nil
	}
	return 0, err
}

// mount waits for a disk, which shows some time after its driver.
func mount(source, target, kind, options string) (err error) {
	for range 100 {
		if err = unix.Mount(source, target, kind, 0, options); !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ENXIO) {
			return err
		}
		time.Sleep(20 * time.Millisecond)
	}
	return err
}

// loadModules loads those that the file "order" names.
func loadModules(dir string) error {
	f, err := os.Open(dir + "/order")
	if err != nil {
		return err
	}
	defer f.Close()
	s := bufio.NewScanner(f)
	for s.Scan() {
		name := strings.TrimSpace(s.Text())
		m, err := os.Open(dir + "/" + name)
		if err != nil {
			return err
		}
		err = unix.FinitModule(int(m.Fd()), "", 0)
		m.Close()
		if err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("load %s: %w", name, err)
		}
	}
	return s.Err()
}

func loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	req, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	req.SetUint16(unix.IFF_UP)
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, req)
}
