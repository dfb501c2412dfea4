package erofs

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// InUse reports whether a bootstrap's file is open: by a superblock that was mounted
// from it, by a loop device that one was mounted from, or by a process. A superblock
// has it open as long as a process can reach the file system: through a mountpoint in
// any mount namespace, through an open file or working directory of a mount that was
// unmounted lazily, or through an overlay, which has a private clone of the mount of
// each lower directory that no mount table shows and no process can unmount. So only
// false means that the file system is read no more. The result may be true for a
// moment longer, since a process that opens the file to read it counts, too. After an
// error the state is unknown: callers must treat it as true.
//
// The result does not cover a file system that is mounted during the call: the caller
// must not mount at the same time. The file must be the one that was mounted, not
// another with the same content. The process needs to own the file, or CAP_LEASE.
//
// The kernel grants a write lease only if no descriptor except the lease's own has
// the inode open (fs/locks.c, check_conflicting_open; it counts descriptors that were
// opened for reading, by processes and by the kernel, and before Linux 5.3 every
// reference).
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
	// At once: until then a process that opens the file waits.
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_SETLEASE, unix.F_UNLCK); err != nil {
		return true, &os.PathError{Op: "end the lease of", Path: bootstrap, Err: err}
	}
	return false, nil
}
