package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/lacuna-snapshotter/lacuna/integration/harness"
)

// disk gives the daemon a file system of its own, which can be filled. It goes
// with the environment.
func disk(ctx context.Context, e *harness.Env) error {
	image, dir := e.Path("disk"), e.Path(harness.DaemonRoot)
	if err := os.Mkdir(dir, 0o711); err != nil {
		return err
	}
	for _, args := range [][]string{
		{"truncate", "-s", "2G", image}, {"mke2fs", "-q", "-t", "ext4", "-m", "0", image}, {"mount", "-o", "loop", image, dir},
	} {
		if out, err := exec.CommandContext(ctx, args[0], args[1:]...).CombinedOutput(); err != nil {
			return fmt.Errorf("%v: %w\n%s", args, err, out)
		}
	}
	return nil
}

// full calls f while there is no room on the daemon's disk.
func (n *node) full(f func()) (err error) {
	balloon, err := os.Create(filepath.Join(n.daemon.Root, "balloon"))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, balloon.Close(), os.Remove(balloon.Name())) }()
	at := int64(0)
	for step := int64(1 << 30); step >= 4096; {
		switch err := unix.Fallocate(int(balloon.Fd()), 0, at, step); {
		case err == nil:
			at += step
		case errors.Is(err, unix.ENOSPC):
			step /= 2
		default:
			return os.NewSyscallError("fallocate", err)
		}
	}
	f()
	return nil
}
