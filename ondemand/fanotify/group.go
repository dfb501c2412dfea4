package fanotify

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/lacuna-snapshotter/lacuna/internal/feature"
	"github.com/lacuna-snapshotter/lacuna/internal/kernel"
)

// NewGroup makes a group for pre-content events. As long as a process has a descriptor
// of it, readers of holes wait.
func NewGroup() (*os.File, error) {
	flags := uint(unix.FAN_CLASS_PRE_CONTENT | unix.FAN_CLOEXEC | unix.FAN_NONBLOCK |
		unix.FAN_UNLIMITED_QUEUE | unix.FAN_UNLIMITED_MARKS)
	// Events' descriptors only name their file, so they are read-only: a file system
	// that was remounted read-only gives no others, and what is filled can be read.
	fd, err := unix.FanotifyInit(flags, unix.O_RDONLY|unix.O_LARGEFILE|unix.O_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("fanotify_init: %w%s", err, hint(err))
	}
	return os.NewFile(uintptr(fd), "fanotify"), nil
}

func hint(err error) string {
	switch {
	case errors.Is(err, unix.ENOSYS), errors.Is(err, unix.EINVAL):
		return " (needs " + kernel.PreContent.Needs() + ")"
	case errors.Is(err, unix.EPERM):
		return " (needs CAP_SYS_ADMIN)"
	case errors.Is(err, unix.EMFILE):
		return " (too many groups: fs.fanotify.max_user_groups)"
	case errors.Is(err, unix.EOPNOTSUPP):
		return " (the file system of the cache does not support pre-content events: use ext4, xfs or btrfs)"
	}
	return ""
}

// Probe reports whether the transport works for blobs in dir: whether EROFS mounts
// files, and pre-content events work.
func Probe(dir string) error {
	if err := kernel.PreContent.Check(); err != nil {
		return err
	}
	if err := kernel.EROFSFile.Check(); errors.Is(err, feature.ErrMissing) { // else it is unknown
		return err
	}
	group, err := NewGroup()
	if err != nil {
		return err
	}
	defer group.Close()
	f, err := os.CreateTemp(dir, ".probe-*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	defer f.Close()
	return mark(group, unix.FAN_MARK_ADD, f)
}
