package erofs

import (
	"errors"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"
)

// MountError says what of a mount went wrong and what can be done.
type MountError struct {
	Op     string // "mount" or "unmount"
	Target string
	Err    error
}

func (e *MountError) Error() string {
	hint := ""
	if e.Op == "mount" {
		switch {
		case errors.Is(e.Err, unix.ENODEV):
			hint = " (the kernel has no EROFS: CONFIG_EROFS_FS)"
		case errors.Is(e.Err, unix.ENOTBLK):
			hint = " (the kernel cannot mount EROFS from files: needs Linux 6.12 with CONFIG_EROFS_FS_BACKED_BY_FILE)"
		case errors.Is(e.Err, unix.EPERM):
			hint = " (needs CAP_SYS_ADMIN)"
		}
	}
	return fmt.Sprintf("%s erofs at %s: %v%s", e.Op, e.Target, e.Err, hint)
}

// Unwrap returns the system call's error.
func (e *MountError) Unwrap() error { return e.Err }

// Mount mounts bootstrap and blob, both files, read-only at target. The mount
// honours device nodes and set-user-ID bits, which images need.
func Mount(bootstrap, blob, target string) error {
	if strings.ContainsAny(blob, ",") {
		return &MountError{"mount", target, fmt.Errorf("a comma in the path %q", blob)}
	}
	if err := unix.Mount(bootstrap, target, "erofs", unix.MS_RDONLY, "device="+blob); err != nil {
		return &MountError{"mount", target, err}
	}
	return nil
}

// Unmount removes the mount; a mount still in use goes when its last user does.
func Unmount(target string) error {
	if err := unix.Unmount(target, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil {
		return &MountError{"unmount", target, err}
	}
	return nil
}
