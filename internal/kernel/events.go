package kernel

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"

	"github.com/lacuna-snapshotter/lacuna/internal/feature"
)

// probePreContent marks a file on tmpfs, which does not support these events: a kernel
// that knows them answers EOPNOTSUPP. Since no mark is set, no reader can block on the
// probe.
func probePreContent() error {
	group, err := unix.FanotifyInit(unix.FAN_CLASS_PRE_CONTENT|unix.FAN_CLOEXEC|unix.FAN_NONBLOCK, unix.O_RDONLY|unix.O_LARGEFILE|unix.O_CLOEXEC)
	switch {
	case errors.Is(err, unix.ENOSYS), errors.Is(err, unix.EINVAL):
		return feature.ErrMissing
	case err != nil:
		return os.NewSyscallError("fanotify_init", err)
	}
	defer unix.Close(group)
	file, err := unix.MemfdCreate(memfdName, unix.MFD_CLOEXEC)
	if err != nil {
		return os.NewSyscallError("memfd_create", err)
	}
	defer unix.Close(file)
	switch err := unix.FanotifyMark(group, unix.FAN_MARK_ADD, unix.FAN_PRE_ACCESS, file, ""); {
	case err == nil, errors.Is(err, unix.EOPNOTSUPP):
		return nil
	case errors.Is(err, unix.EINVAL):
		return feature.ErrMissing
	default:
		return os.NewSyscallError("fanotify_mark", err)
	}
}

// probeFreezer opens the freezer's version 1 hierarchy, which need not be mounted
// anywhere.
func probeFreezer() error {
	fs, err := openContext("cgroup")
	if err != nil {
		return err
	}
	defer unix.Close(fs)
	switch err := errors.Join(unix.FsconfigSetFlag(fs, "freezer"), unix.FsconfigCreate(fs)); {
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOENT):
		return feature.ErrMissing
	case err != nil:
		return os.NewSyscallError("fsconfig", err)
	}
	return nil
}
