package kernel

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/lacuna-snapshotter/lacuna/erofs"
	"github.com/lacuna-snapshotter/lacuna/internal/feature"
)

// openDevice opens a device, for which the kernel may load a module.
func openDevice(path string) (fd int, err error) {
	fd, err = unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	switch {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENXIO), errors.Is(err, unix.ENODEV):
		return -1, fmt.Errorf("no device %s: %w", path, feature.ErrMissing)
	case err != nil:
		return -1, &os.PathError{Op: "open", Path: path, Err: err}
	}
	return fd, nil
}

func probeFUSE() error {
	fd, err := openDevice("/dev/fuse")
	if err != nil {
		return err
	}
	return unix.Close(fd)
}

// probeRestore binds a cache of its own and writes the command "restore": the kernel
// accepts it only for a bound cache.
func probeRestore() error {
	fd, err := openDevice("/dev/cachefiles")
	if err != nil {
		return err
	}
	defer unix.Close(fd) // which unbinds the cache
	dir, err := os.MkdirTemp("/var/tmp", "lacuna-probe-*")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	for _, command := range []string{"dir " + dir, "tag lacuna-probe", "bind ondemand"} {
		if _, err := unix.Write(fd, []byte(command)); err != nil {
			if command == "bind ondemand" && errors.Is(err, unix.EINVAL) {
				return feature.ErrMissing
			}
			return fmt.Errorf("cachefiles: %q: %w", command, err)
		}
	}
	switch _, err := unix.Write(fd, []byte("restore")); {
	case errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.EINVAL):
		return feature.ErrMissing
	case err != nil:
		return fmt.Errorf("cachefiles: \"restore\": %w", err)
	}
	return nil
}

// probeLoop makes a loop device of one file and changes it to another, which the
// kernel allows if the device is read-only and the files have the same size.
func probeLoop() error {
	control, err := openDevice("/dev/loop-control")
	if err != nil {
		return err
	}
	if err := unix.Close(control); err != nil {
		return err
	}
	var files [2]int
	for i := range files {
		fd, err := unix.MemfdCreate(memfdName, unix.MFD_CLOEXEC)
		if err != nil {
			return os.NewSyscallError("memfd_create", err)
		}
		defer unix.Close(fd)
		content := make([]byte, erofs.BlockSize)
		content[0] = byte(i)
		if _, err := unix.Write(fd, content); err != nil {
			return os.NewSyscallError("write", err)
		}
		files[i] = fd
	}
	loop, err := erofs.AttachLoop(descriptorPath(files[0]), false)
	switch {
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOTTY): // LOOP_CONFIGURE
		return feature.ErrMissing
	case err != nil:
		return err
	}
	defer loop.Close() // which frees it
	if err := erofs.ChangeLoop(loop.Name(), "/memfd:"+memfdName+" (deleted)", descriptorPath(files[1]), false); err != nil {
		return err
	}
	var b [1]byte
	if _, err := loop.ReadAt(b[:], 0); err != nil {
		return err
	}
	if b[0] != 1 {
		return fmt.Errorf("%s still reads its first file", loop.Name())
	}
	return nil
}

const memfdName = "lacuna-probe"

func descriptorPath(fd int) string { return fmt.Sprintf("/proc/self/fd/%d", fd) }
