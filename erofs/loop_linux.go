package erofs

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// readAhead is the kernel's read-ahead, in bytes, for mounts whose blob has holes: that
// of other file systems (VM_READAHEAD_PAGES). Loop devices of recent kernels have
// twenty times as much.
const readAhead = 128 << 10

// MountLoop is Mount through loop devices, which the kernel frees after the unmount.
// Kernels that cannot mount EROFS from files need it, and with it the blob's file can
// be changed while the file system is mounted: see ChangeLoop. The result is the blob's
// device. The loop device reads a sparse blob only where EROFS reads it; a whole one,
// like the bootstrap, it also reads ahead, in the order of the file.
func MountLoop(bootstrap, blob string, sparse bool, target string) (device string, err error) {
	var devices []string
	for _, file := range []struct {
		path   string
		sparse bool
	}{{bootstrap, false}, {blob, sparse}} {
		loop, err := AttachLoop(file.path, file.sparse)
		if err != nil {
			return "", &MountError{"mount", target, err}
		}
		defer loop.Close() // the mount holds the device, which the kernel frees after it
		// The mount uses the read-ahead of the bootstrap's device. A device that is freed
		// loses its setting.
		if sparse {
			if err := unix.IoctlSetInt(int(loop.Fd()), unix.BLKRASET, readAhead/512); err != nil {
				return "", &MountError{"mount", target, fmt.Errorf("set readahead of %s: %w", loop.Name(), err)}
			}
		}
		devices = append(devices, loop.Name())
	}
	if err := unix.Mount(devices[0], target, "erofs", mountFlags, "device="+devices[1]); err != nil {
		return "", &MountError{"mount", target, err}
	}
	return devices[1], nil
}

// Loops lists the loop devices in use, by the path of the file that they read.
func Loops() (map[string][]string, error) {
	found, err := filepath.Glob("/sys/block/loop*/loop")
	if err != nil {
		return nil, err
	}
	loops := map[string][]string{}
	for _, path := range found {
		device := "/dev/" + filepath.Base(filepath.Dir(path))
		if file, ok := backingFile(device); ok {
			loops[file] = append(loops[file], device)
		}
	}
	return loops, nil
}

// backingFile returns the path of the file that a loop device reads. ok is false
// for one that has been freed.
func backingFile(device string) (path string, ok bool) {
	b, err := os.ReadFile("/sys/block/" + filepath.Base(device) + "/loop/backing_file")
	return strings.TrimSuffix(string(b), "\n"), err == nil
}

// loopChangeFD is LOOP_CHANGE_FD, include/uapi/linux/loop.h.
const loopChangeFD = 0x4C06

// ChangeLoop makes a loop device of MountLoop read the file to instead of from; both
// have the same size. Mounts of the device stay. The kernel waits, uninterruptibly, for
// reads that are in progress. ChangeLoop does nothing to a device that has been freed
// meanwhile, or that reads another file. From may have been on a file system that has
// been unmounted since. Sparse is as for MountLoop, and is about the file to.
func ChangeLoop(device, from, to string, sparse bool) error {
	loop, err := os.Open(device)
	if err != nil {
		return err
	}
	defer loop.Close() // while it is open, the kernel gives the device to no other process
	// Of a file on a file system that is not mounted any more, the kernel shows the path
	// below that file system's root.
	if now, ok := backingFile(device); !ok || now != from && now != "/"+filepath.Base(from) {
		return nil
	}
	file, err := openBacking(to, sparse)
	if err != nil {
		return err
	}
	defer unix.Close(file)
	if err := unix.IoctlSetInt(int(loop.Fd()), loopChangeFD, file); err != nil {
		return fmt.Errorf("change %s to read %s: %w", device, to, err)
	}
	return nil
}

// openBacking opens a file for a loop device. It may be a file that this process
// serves through FUSE. Then os.Open could block the process: it registers the file with
// the poller, a system call that asks the FUSE server, and during which the runtime
// does not run other goroutines.
func openBacking(path string, sparse bool) (fd int, err error) {
	if fd, err = unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0); err != nil {
		return -1, &os.PathError{Op: "open", Path: path, Err: err}
	}
	advice := unix.FADV_NORMAL
	if sparse {
		advice = unix.FADV_RANDOM
	}
	if err := unix.Fadvise(fd, 0, 0, advice); err != nil {
		return -1, errors.Join(&os.PathError{Op: "fadvise", Path: path, Err: err}, unix.Close(fd))
	}
	return fd, nil
}

// AttachLoop makes a read-only loop device of a file. The kernel frees it when the
// result is closed and it is not mounted. Sparse is as for MountLoop.
func AttachLoop(path string, sparse bool) (*os.File, error) {
	backing, err := openBacking(path, sparse)
	if err != nil {
		return nil, err
	}
	defer unix.Close(backing)
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return nil, fmt.Errorf("%w (modprobe loop)", err)
	}
	defer control.Close()
	for range 64 { // other processes take free devices too
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
