package kernel

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/lacuna-snapshotter/lacuna/internal/feature"
)

// openContext begins a mount of a type of file system, see fsopen(2).
func openContext(fsType string) (fs int, err error) {
	fs, err = unix.Fsopen(fsType, unix.FSOPEN_CLOEXEC)
	if errors.Is(err, unix.ENODEV) {
		return -1, feature.ErrMissing
	}
	return fs, os.NewSyscallError("fsopen", err)
}

func probeEROFS() error {
	fs, err := openContext("erofs")
	if err != nil {
		return err
	}
	return unix.Close(fs)
}

// probeEROFSFile mounts a file that is no EROFS: this program. A kernel that takes
// files looks for the superblock (EINVAL, and a line in the kernel's log), others want
// a block device. Nothing is mounted.
func probeEROFSFile() error {
	fs, err := openContext("erofs")
	if err != nil {
		return err
	}
	defer unix.Close(fs)
	const source = "/proc/self/exe"
	if err := unix.FsconfigSetString(fs, "source", source); err != nil {
		return os.NewSyscallError("fsconfig", err)
	}
	switch err := unix.FsconfigCreate(fs); {
	case errors.Is(err, unix.EINVAL):
		return nil
	case errors.Is(err, unix.ENOTBLK):
		var st unix.Statfs_t
		if err := unix.Statfs(source, &st); err != nil {
			return &os.PathError{Op: "statfs", Path: source, Err: err}
		}
		switch st.Type { // EROFS reads the page cache of files, which these do not fill
		case unix.TMPFS_MAGIC, unix.OVERLAYFS_SUPER_MAGIC:
			return errors.New("this program's file is on tmpfs or overlayfs, from which no kernel mounts EROFS: copy it to a disk to find out")
		}
		return feature.ErrMissing
	default:
		return fmt.Errorf("mount %s as EROFS: %w", source, err)
	}
}

// probeFscache gives the option that names a file system in fscache. Kernels that
// were built without it accept the option, and say so in the context's log.
func probeFscache() error {
	fs, err := openContext("erofs")
	if err != nil {
		return err
	}
	defer unix.Close(fs)
	err = unix.FsconfigSetString(fs, "fsid", "lacuna-probe")
	if errors.Is(err, unix.EINVAL) {
		return feature.ErrMissing
	}
	if err != nil {
		return os.NewSyscallError("fsconfig", err)
	}
	b := make([]byte, 256)
	if n, err := unix.Read(fs, b); err == nil && strings.Contains(string(b[:n]), "not supported") {
		return feature.ErrMissing
	}
	return nil
}
