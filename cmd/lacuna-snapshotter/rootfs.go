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

// fileSystems are the names of types that statfs(2) returns as numbers.
var fileSystems = map[uint32]string{
	unix.OVERLAYFS_SUPER_MAGIC: "overlayfs", unix.TMPFS_MAGIC: "tmpfs", unix.EXT4_SUPER_MAGIC: "ext4",
	unix.XFS_SUPER_MAGIC: "xfs", unix.BTRFS_SUPER_MAGIC: "btrfs", unix.NFS_SUPER_MAGIC: "nfs",
	unix.FUSE_SUPER_MAGIC: "fuse", unix.F2FS_SUPER_MAGIC: "f2fs", unix.MSDOS_SUPER_MAGIC: "vfat",
}

// disk is the file system that a directory is on.
type disk struct {
	kind       string
	size, free int64 // bytes, without those reserved for root
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

// fullBelow is the free space, in bytes, below which reads of holes fail.
const fullBelow = 16 << 20

// problem says what a lack of space leads to; it is empty if there is none.
func (d disk) problem() string {
	switch {
	case d.free < fullBelow:
		return "the root's disk is full: reads of holes fail with EIO"
	case d.free*100 < d.size*layer.LeastFree:
		return fmt.Sprintf("less than %d %% of the root's disk is free: backfill pauses", layer.LeastFree)
	}
	return ""
}

// readOnly reports whether a directory's file system cannot be written. statfs(2) does
// not show that ext4 has made a file system read-only after an error (emergency_ro).
func readOnly(dir string) bool {
	now := time.Now()
	return errors.Is(os.Chtimes(dir, now, now), unix.EROFS)
}

// checkRoot fails where containers could not be mounted: not every file system has what
// overlayfs requires of its upper directory.
func checkRoot(root string) error {
	d, err := diskOf(root)
	if err != nil {
		return err
	}
	err = tryOverlay(root)
	// Without the system calls, the privilege or space the answer is unknown. On a full
	// disk the daemon must start, since it has to remove the layers that fill it.
	for _, unknown := range []error{unix.ENOSYS, unix.EPERM, unix.ENOSPC, unix.EDQUOT} {
		if errors.Is(err, unknown) {
			return nil
		}
	}
	if err == nil {
		return nil
	}
	return fmt.Errorf("root %s is on %s, on which overlayfs cannot mount containers (%w): set root to a directory on ext4, xfs or btrfs; in a container, to a volume", root, d.kind, err)
}

// tryOverlay creates an overlay with its upper directory in dir, without mounting it
// at a path, and releases it.
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
