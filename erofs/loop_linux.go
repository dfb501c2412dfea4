package erofs

import (
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// MountLoop is Mount for kernels that cannot mount EROFS from files: through
// loop devices, which go away with the mount.
func MountLoop(bootstrap, blob, target string) error {
	var devices []string
	for _, path := range []string{bootstrap, blob} {
		loop, err := attachLoop(path)
		if err != nil {
			return &MountError{"mount", target, err}
		}
		defer loop.Close() // the mount holds the device, which is to clear itself
		devices = append(devices, loop.Name())
	}
	if err := unix.Mount(devices[0], target, "erofs", unix.MS_RDONLY, "device="+devices[1]); err != nil {
		return &MountError{"mount", target, err}
	}
	return nil
}

// attachLoop makes a read-only loop device of a file. The file may be one that
// this process serves through FUSE: os.Open would ask it whether it can be polled,
// in a system call for which the runtime cannot let others run.
func attachLoop(path string) (*os.File, error) {
	backing, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	defer unix.Close(backing)
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return nil, fmt.Errorf("%w (modprobe loop)", err)
	}
	defer control.Close()
	for range 64 { // others take free devices too
		n, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return nil, fmt.Errorf("find a loop device: %w", err)
		}
		loop, err := os.Open(fmt.Sprintf("/dev/loop%d", n))
		if err != nil {
			return nil, err
		}
		config := unix.LoopConfig{Fd: uint32(backing), Size: BlockSize}
		config.Info.Flags = unix.LO_FLAGS_READ_ONLY | unix.LO_FLAGS_AUTOCLEAR
		copy(config.Info.File_name[:len(config.Info.File_name)-1], strings.TrimPrefix(path, "/"))
		err = unix.IoctlLoopConfigure(int(loop.Fd()), &config)
		if err == nil {
			return loop, nil
		}
		loop.Close()
		if err != unix.EBUSY { //nolint:errorlint // an errno
			return nil, fmt.Errorf("loop device of %s: %w", path, err)
		}
	}
	return nil, fmt.Errorf("loop device of %s: %w", path, unix.EBUSY)
}
