package erofs

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// InUse reports whether anybody has a bootstrap's file open: a superblock that was
// mounted from it, a loop device that one was mounted from, or a process. A
// superblock has it open as long as anybody can reach the file system: through a
// mountpoint in any mount namespace, an open file or working directory of a mount
// that was unmounted lazily, or an overlay, which has a private clone of the mount
// of each lower directory that nobody sees or can unmount. So only false says that
// no read of the file system comes any more. It may be true for a moment longer:
// whoever opens the file to read it counts, too. After an error nothing is known:
// callers must take that for true.
//
// It says nothing of a file system that is mounted while it looks: whoever calls it
// must not mount at the same time. The file must be the one that was mounted, not
// another of the same content. The process needs to own the file, or CAP_LEASE.
//
// The kernel grants a write lease only where nobody but the lease's own descriptor
// has the inode open (fs/locks.c, check_conflicting_open; it counts descriptors
// opened to read, whatever opened them, and before Linux 5.3 every reference).
func InUse(bootstrap string) (bool, error) {
	fd, err := unix.Open(bootstrap, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return true, &os.PathError{Op: "open", Path: bootstrap, Err: err}
	}
	defer unix.Close(fd)
	_, err = unix.FcntlInt(uintptr(fd), unix.F_SETLEASE, unix.F_WRLCK)
	if errors.Is(err, unix.EAGAIN) {
		return true, nil
	}
	if err != nil {
		return true, &os.PathError{Op: "lease", Path: bootstrap, Err: err}
	}
	// At once: until then whoever opens the file waits.
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_SETLEASE, unix.F_UNLCK); err != nil {
		return true, &os.PathError{Op: "end the lease of", Path: bootstrap, Err: err}
	}
	return false, nil
}
