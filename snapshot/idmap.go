package snapshot

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
)

// Limits of the kernel for a user namespace's mapping. It accepts every mapping that
// passes here.
const (
	maxRanges  = 340       // UID_GID_MAP_MAX_EXTENTS, include/linux/user_namespace.h
	maxMapping = 4096 - 2  // bytes: with a newline it must be less than a page (map_write, kernel/user_namespace.c)
	noID       = 1<<32 - 1 // (uid_t)-1, the invalid ID
)

// mapping is the mapping of a user namespace as a snapshot's labels have it: for user
// IDs and for group IDs, "container:host:size", separated by commas
// (containerd/internal/userns, IDMap.Marshal).
type mapping struct {
	uidLabel, gidLabel string
	uids, gids         ranges
}

type ranges []idRange

// idRange maps the IDs [container, container+size) to [host, host+size). Its
// ends are at most noID.
type idRange struct{ container, host, size uint64 }

// parseMapping reads the labels. It returns nil where they are missing or both empty:
// nothing is mapped. Labels from which the kernel cannot make a user namespace that has
// a root are errdefs.ErrInvalidArgument.
func parseMapping(labels map[string]string) (*mapping, error) {
	uid, gid := labels[snapshots.LabelSnapshotUIDMapping], labels[snapshots.LabelSnapshotGIDMapping]
	if uid == "" && gid == "" {
		return nil, nil
	}
	m := &mapping{uidLabel: uid, gidLabel: gid}
	var err error
	if m.uids, err = parseRanges(uid); err != nil {
		return nil, badLabel(snapshots.LabelSnapshotUIDMapping, uid, err)
	}
	if m.gids, err = parseRanges(gid); err != nil {
		return nil, badLabel(snapshots.LabelSnapshotGIDMapping, gid, err)
	}
	return m, nil
}

func badLabel(name, value string, err error) error {
	const enough = 100 // bytes of a hostile label
	if len(value) > enough {
		value = value[:enough] + "..."
	}
	return fmt.Errorf("label %s=%q: %w: %w", name, value, err, errdefs.ErrInvalidArgument)
}

func parseRanges(label string) (ranges, error) {
	if label == "" {
		// containerd would mount without a mapping (core/mount/mount_linux.go).
		return nil, errors.New("empty or missing, although the other kind of ID has a mapping")
	}
	parts := strings.Count(label, ",") + 1
	if len(label) > maxMapping || parts > maxRanges {
		return nil, fmt.Errorf("%d ranges in %d bytes: the kernel accepts at most %d in %d", parts, len(label), maxRanges, maxMapping)
	}
	list := make(ranges, 0, parts)
	for part := range strings.SplitSeq(label, ",") {
		r, err := parseRange(part)
		if err != nil {
			return nil, err
		}
		for _, other := range list {
			if overlap(r.container, other.container, r.size, other.size) || overlap(r.host, other.host, r.size, other.size) {
				return nil, fmt.Errorf("range %q overlaps another", part)
			}
		}
		list = append(list, r)
	}
	if _, ok := list.toHost(0); !ok {
		return nil, errors.New("ID 0 is not mapped")
	}
	return list, nil
}

func parseRange(s string) (r idRange, err error) {
	fields := strings.Split(s, ":")
	if len(fields) != 3 {
		return r, fmt.Errorf("range %q is not container:host:size", s)
	}
	for i, to := range []*uint64{&r.container, &r.host, &r.size} {
		if *to, err = strconv.ParseUint(fields[i], 10, 32); err != nil {
			return r, fmt.Errorf("range %q: %q is not a number below 2^32", s, fields[i])
		}
	}
	if r.size == 0 || r.container+r.size > noID || r.host+r.size > noID {
		return r, fmt.Errorf("range %q is empty, or goes beyond ID %d", s, noID-1)
	}
	return r, nil
}

func overlap(a, b, sizeA, sizeB uint64) bool { return a < b+sizeB && b < a+sizeA }

// toHost maps an ID of the container.
func (list ranges) toHost(id uint64) (host uint64, ok bool) {
	for _, r := range list {
		if r.container <= id && id < r.container+r.size {
			return r.host + id - r.container, true
		}
	}
	return 0, false
}

// root is the host's owner of the files of root in the container.
func (m *mapping) root() (uid, gid int) {
	u, _ := m.uids.toHost(0)
	g, _ := m.gids.toHost(0)
	return int(u), int(g)
}

// identity reports whether every mapped ID is the same on the host.
func (m *mapping) identity() bool {
	moves := func(r idRange) bool { return r.container != r.host }
	return !slices.ContainsFunc(m.uids, moves) && !slices.ContainsFunc(m.gids, moves)
}

// options make containerd id-map an overlay's lower directories
// (core/mount/mount_linux.go).
func (m *mapping) options() []string {
	return []string{"uidmap=" + m.uidLabel, "gidmap=" + m.gidLabel}
}

// mapped returns the options of a snapshot's mount that id-map its parents' files. There
// are none where no ID changes, where the files have the owners of the host already, and
// without parents: the snapshot's own directory is created with the owner of the host.
func (c chain) mapped() ([]string, error) {
	m, err := parseMapping(c[0].info.Labels)
	parents := c[1:]
	if err != nil || m == nil || m.identity() || len(parents) == 0 {
		return nil, err
	}
	if slices.ContainsFunc(parents, func(of link) bool { return of.info.Labels[labelRemapped] != "" }) {
		return nil, nil
	}
	return m.options(), nil
}

// isRemapped reports whether the files of a snapshot that is being committed, and of its
// parents, have the owners of the host already. This is so where the configuration of
// containerd's proxy plugin lacks the capability remap-ids: containerd's client then
// creates a parent and changes the owner of each file in it
// (client/snapshotter_opts_unix.go and container_opts_unix.go). The labels of the
// container's snapshot do not show this. The client prepares that parent under its name
// with the suffix "-remap", in containerd 1 and 2. The owners do not show it either: a
// mapping may leave root unchanged.
func isRemapped(name, key string) bool {
	return clientKey(key) == clientKey(name)+"-remap"
}

// clientKey is the key that a client has given to a snapshot, which containerd's
// metadata store passes on as namespace/number/key (core/metadata/snapshot.go,
// createKey).
func clientKey(s string) string {
	if parts := strings.SplitN(s, "/", 3); len(parts) == 3 {
		return parts[2]
	}
	return s
}
