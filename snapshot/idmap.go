package snapshot

import (
	"fmt"
	"os"
	"strings"
	"syscall"

	"github.com/containerd/containerd/v2/core/snapshots"
)

// mapping is the mapping of a user namespace, of a snapshot's labels: for user and
// for group IDs, "container:host:size" with commas between
// (containerd/internal/userns, IDMap.Marshal).
type mapping struct {
	uidLabel, gidLabel string
	uids, gids         []idRange
}

type idRange struct{ container, host, size int64 }

// parseMapping reads the labels. ok is false where there are none.
func parseMapping(labels map[string]string) (m mapping, ok bool) {
	uid, hasUID := labels[snapshots.LabelSnapshotUIDMapping]
	gid, hasGID := labels[snapshots.LabelSnapshotGIDMapping]
	if !hasUID || !hasGID {
		return m, false
	}
	return mapping{uid, gid, parseRanges(uid), parseRanges(gid)}, true
}

func parseRanges(s string) (list []idRange) {
	for part := range strings.SplitSeq(s, ",") {
		var r idRange
		if _, err := fmt.Sscanf(part, "%d:%d:%d", &r.container, &r.host, &r.size); err == nil {
			list = append(list, r)
		}
	}
	return list
}

// toHost maps an ID of the container.
func toHost(list []idRange, id int64) (int64, error) {
	for _, r := range list {
		if r.container <= id && id-r.container < r.size {
			return r.host + id - r.container, nil
		}
	}
	return 0, fmt.Errorf("ID %d is not in the snapshot's mapping", id)
}

// root is the owner, on the host, of what root in the container owns.
func (m mapping) root() (uid, gid int, err error) {
	u, err := toHost(m.uids, 0)
	if err != nil {
		return 0, 0, err
	}
	g, err := toHost(m.gids, 0)
	return int(u), int(g), err
}

// options are those by which containerd mounts the lower directories, or the bound
// one, mapped (core/mount/mount_linux.go).
func (m mapping) options() []string { return []string{"uidmap=" + m.uidLabel, "gidmap=" + m.gidLabel} }

// needed reports whether mounts must be mapped. The labels do not say: where the
// configuration of containerd's proxy plugin lacks the capability remap-ids, its
// client has made a parent in which every file has its owner on the host already
// (client/snapshotter_opts_unix.go), and mapping that again would be wrong. So
// the nearest parent's root directory is asked. A directory without parents
// belongs to the container's root on the host from the beginning.
func (m mapping) needed(lowers []string) (bool, error) {
	if len(lowers) == 0 {
		return false, nil
	}
	uid, _, err := owner(lowers[0])
	if err != nil {
		return false, err
	}
	for _, r := range m.uids {
		if r.host <= int64(uid) && int64(uid)-r.host < r.size {
			return r.container == r.host, nil
		}
	}
	return true, nil
}

// owner returns who owns a directory.
func owner(path string) (uid, gid int, err error) {
	info, err := os.Stat(path)
	if err != nil {
		return 0, 0, err
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return 0, 0, fmt.Errorf("stat %s: unexpected type", path)
	}
	return int(st.Uid), int(st.Gid), nil
}
