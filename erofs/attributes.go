package erofs

import (
	"archive/tar"
	"fmt"
	"math"
	"strings"
	"time"
)

const (
	xattrRecord = "SCHILY.xattr."
	setGID      = 0o2000
)

// setAttributes applies an entry's owner, mode, time and xattrs; those of a
// hard link's entry go to the inode that it shares. A directory that exists already
// keeps the xattrs that the entry does not name.
func (t *Tree) setAttributes(n *Inode, h *tar.Header) error {
	uid, gid, err := owner(h)
	if err != nil {
		return err
	}
	n.UID, n.GID, n.Mtime = uid, gid, boundTime(h.ModTime)
	if n.Mode&ModeType == ModeSymlink {
		n.Mode = ModeSymlink | 0o777
	} else {
		n.Mode = n.Mode&ModeType | uint16(h.Mode&0o7777)
	}
	for key, value := range h.PAXRecords {
		name, ok := strings.CutPrefix(key, xattrRecord)
		if !ok {
			continue
		}
		keep, err := keepsXattr(n, name, value)
		if err != nil {
			return err
		}
		if keep {
			if err := t.setXattr(n, name, value); err != nil {
				return err
			}
		}
	}
	return n.checkACL()
}

// owner refuses (uid_t)-1, which chown(2) takes for "do not change it".
func owner(h *tar.Header) (uid, gid uint32, err error) {
	if h.Uid < 0 || h.Uid >= math.MaxUint32 || h.Gid < 0 || h.Gid >= math.MaxUint32 {
		return 0, 0, fmt.Errorf("owner %d:%d %w", h.Uid, h.Gid, ErrUnsupported)
	}
	return uint32(h.Uid), uint32(h.Gid), nil
}

// boundTime is containerd's: times before 1970 become 1970, and so do times that
// do not fit into 63 bits of nanoseconds.
func boundTime(m time.Time) Time {
	if m.Before(time.Unix(0, 0)) || m.After(time.Unix(0, math.MaxInt64)) {
		return Time{}
	}
	return Time{Sec: m.Unix(), Nsec: uint32(m.Nanosecond())}
}

func checkTarget(target string) error {
	if target == "" || len(target) > maxPath || strings.Contains(target, "\x00") {
		return fmt.Errorf("%w symlink target of %d bytes: %.40q", ErrInvalid, len(target), target)
	}
	return nil
}
