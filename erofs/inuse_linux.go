package erofs

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// InUse reports whether anybody but the caller has the file open: for a
// bootstrap, whether any file system that was mounted from it is still alive,
// also one that only an overlay, another mount namespace or an open file keeps.
// The caller must not have it open itself. It asks for a write lease, which the
// kernel grants only where no other open file description refers to the inode
// (fs/locks.c, check_conflicting_open).
func InUse(path string) (bool, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return true, &os.PathError{Op: "open", Path: path, Err: err}
	}
	defer unix.Close(fd)
	_, err = unix.FcntlInt(uintptr(fd), unix.F_SETLEASE, unix.F_WRLCK)
	if errors.Is(err, unix.EAGAIN) {
		return true, nil
	}
	if err != nil {
		return true, &os.PathError{Op: "lease", Path: path, Err: err}
	}
	_, err = unix.FcntlInt(uintptr(fd), unix.F_SETLEASE, unix.F_UNLCK)
	return false, err
}
