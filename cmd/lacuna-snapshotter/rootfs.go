package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lacuna-snapshotter/lacuna/snapshot/layer"
)

// fileSystems are names for what statfs(2) calls by number.
var fileSystems = map[uint32]string{
	unix.OVERLAYFS_SUPER_MAGIC: "overlayfs", unix.TMPFS_MAGIC: "tmpfs", unix.EXT4_SUPER_MAGIC: "ext4",
	unix.XFS_SUPER_MAGIC: "xfs", unix.BTRFS_SUPER_MAGIC: "btrfs", unix.NFS_SUPER_MAGIC: "nfs",
	unix.FUSE_SUPER_MAGIC: "fuse", unix.F2FS_SUPER_MAGIC: "f2fs", unix.MSDOS_SUPER_MAGIC: "vfat",
}

// disk is the file system that a directory is on.
type disk struct {
	kind       string
	size, free int64 // bytes, those that only root may take left out
}

func diskOf(dir string) (disk, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return disk{}, &os.PathError{Op: "statfs", Path: dir, Err: err}
	}
	kind := fileSystems[uint32(st.Type)]
	if kind == "" {
		kind = fmt.Sprintf("file system %#x", uint32(st.Type))
	}
	return disk{kind, int64(st.Blocks) * st.Bsize, int64(st.Bavail) * st.Bsize}, nil
}

// fullBelow is so little room that reads of holes fail, in bytes.
const fullBelow = 16 << 20

// problem says what want of room means, or nothing.
func (d disk) problem() string {
	switch {
	case d.free < fullBelow:
		return "the disk of the root is full: what is not there yet cannot be read, containers get EIO"
	case d.free*100 < d.size*layer.LeastFree:
		return fmt.Sprintf("less than %d %% of the root's disk is free: backfill pauses", layer.LeastFree)
	}
	return ""
}

// readOnly reports whether nothing can be written at a directory. statfs(2) does not tell
// of a file system that ext4 has stopped after an error (emergency_ro).
func readOnly(dir string) bool {
	now := time.Now()
	return errors.Is(os.Chtimes(dir, now, now), unix.EROFS)
}

// checkRoot fails where containers could not be mounted: overlayfs wants of the
// file system of its upper directory what not all have.
func checkRoot(root string) error {
	d, err := diskOf(root)
	if err != nil {
		return err
	}
	err = tryOverlay(root)
	// Without the system calls, the right to them or room nothing is known. On a full
	// disk it is this daemon that has to remove what fills it.
	for _, unknown := range []error{unix.ENOSYS, unix.EPERM, unix.ENOSPC, unix.EDQUOT} {
		if errors.Is(err, unknown) {
			return nil
		}
	}
	if err == nil {
		return nil
	}
	return fmt.Errorf("root %s is on %s, on which the kernel mounts no containers (overlayfs: %w): set root to a directory on ext4, xfs or btrfs; in a container, to a volume", root, d.kind, err)
}

// tryOverlay makes an overlay with its upper directory in dir, and removes it. The
// overlay is never mounted at a path.
func tryOverlay(dir string) (err error) {
	probe, err := os.MkdirTemp(dir, ".overlay-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(probe)) }()
	fs, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return err
	}
	defer unix.Close(fs)
	for _, option := range []string{"lowerdir", "upperdir", "workdir"} {
		path := filepath.Join(probe, option)
		if err := os.Mkdir(path, 0o700); err != nil {
			return err
		}
		if err := unix.FsconfigSetString(fs, option, path); err != nil {
			return err
		}
	}
	return unix.FsconfigCreate(fs)
}
