package erofs

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// readAhead is how many bytes the kernel is to read with one that is wanted, in a
// file of a mount whose blob has holes: as many as on other file systems
// (VM_READAHEAD_PAGES). Loop devices of late kernels have twenty times as much.
const readAhead = 128 << 10

// MountLoop is Mount through loop devices, which go away with the mount. Kernels
// that cannot mount EROFS from files need it, and with it the blob's file can be
// changed while the file system is mounted: see ChangeLoop. device is the blob's.
// A sparse blob is read as EROFS asks; a whole one, like the bootstrap, also ahead
// of that, in the order of the file.
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
		defer loop.Close() // the mount holds the device, which is to clear itself
		// The mount's is that of the bootstrap's device. A device that is freed loses it.
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

// Loops lists the loop devices that read files, by the file's path.
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

// ChangeLoop makes a loop device of MountLoop read the file to in place of from,
// which is as long. Mounts of the device notice nothing; reads that are under way
// are waited for, beyond any signal. A device that has been freed meanwhile, or
// reads another file, is left alone. From may have been on a file system that was
// unmounted since. Sparse is as for MountLoop, of the file to.
func ChangeLoop(device, from, to string, sparse bool) error {
	loop, err := os.Open(device)
	if err != nil {
		return err
	}
	defer loop.Close() // while it is open nobody else can be given it
	// The kernel has paths of a file system that is mounted nowhere begin there.
	if now, ok := backingFile(device); !ok || now != from && now != "/"+filepath.Base(from) {
		return nil
	}
	file, err := openBacking(to, sparse)
	if err != nil {
		return err
	}
	defer unix.Close(file)
	if err := unix.IoctlSetInt(int(loop.Fd()), loopChangeFD, file); err != nil {
		return fmt.Errorf("have %s read %s: %w", device, to, err)
	}
	return nil
}

// openBacking opens a file for a loop device. It may be one that this process
// serves through FUSE: os.Open would ask it whether it can be polled, in a system
// call for which the runtime cannot let others run.
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

// AttachLoop makes a read-only loop device of a file.
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
