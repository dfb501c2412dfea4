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

// probeEROFSFile tries to mount a file that is not EROFS: this program. A kernel that
// can mount files does not find a superblock (EINVAL, and a line in the kernel's log),
// others require a block device (ENOTBLK). Nothing is mounted.
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
		switch st.Type { // EROFS reads files through the page cache, in which these have no read_folio
		case unix.TMPFS_MAGIC, unix.OVERLAYFS_SUPER_MAGIC:
			return errors.New("this program's file is on tmpfs or overlayfs, from which no kernel mounts EROFS: copy it to a disk to find out")
		}
		return feature.ErrMissing
	default:
		return fmt.Errorf("mount %s as EROFS: %w", source, err)
	}
}

// probeFscache sets the option that names a file system in fscache. Kernels that were
// built without the feature accept the option, but log that it is not supported.
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
