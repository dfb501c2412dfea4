package harness

import (
	"context"
	"errors"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// OwnDisk gives the daemon's root an ext4 of its own, of a size such as "128M". It goes
// with the environment.
func (e *Env) OwnDisk(ctx context.Context, size string) error {
	image, dir := e.Path("disk"), e.Path(DaemonRoot)
	if err := os.Mkdir(dir, 0o711); err != nil {
		return err
	}
	for _, args := range [][]string{
		{"truncate", "-s", size, image}, {"mke2fs", "-q", "-t", "ext4", "-m", "0", image}, {"mount", "-o", "loop", image, dir},
	} {
		if _, err := e.Run(ctx, args[0], args[1:]...); err != nil {
			return err
		}
	}
	return nil
}

// FillDisk takes all room of the daemon's disk, until the result is called.
func (e *Env) FillDisk() (empty func() error, err error) {
	balloon, err := os.Create(filepath.Join(e.Path(DaemonRoot), "balloon"))
	if err != nil {
		return nil, err
	}
	defer balloon.Close()
	at := int64(0)
	for step := int64(1 << 30); step >= 1024; {
		switch err := unix.Fallocate(int(balloon.Fd()), 0, at, step); {
		case err == nil:
			at += step
		case errors.Is(err, unix.ENOSPC):
			step /= 2
		default:
			return nil, errors.Join(os.NewSyscallError("fallocate", err), os.Remove(balloon.Name()))
		}
	}
	return func() error { return os.Remove(balloon.Name()) }, nil
}
