package snapshot_test

import (
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"

	"github.com/lacuna-snapshotter/lacuna/internal/hostcheck"
	"github.com/lacuna-snapshotter/lacuna/snapshot"
	"github.com/lacuna-snapshotter/lacuna/snapshot/dirs"
	"github.com/lacuna-snapshotter/lacuna/snapshot/snapshottest"
)

func mappingLabels(uid, gid string) snapshots.Opt {
	return snapshots.WithLabels(map[string]string{
		snapshots.LabelSnapshotUIDMapping: uid, snapshots.LabelSnapshotGIDMapping: gid,
	})
}

// manyRanges maps n single IDs, from 0.
func manyRanges(n, host int) string {
	parts := make([]string, n)
	for i := range parts {
		parts[i] = fmt.Sprintf("%d:%d:1", i, host+i)
	}
	return strings.Join(parts, ",")
}

var mappingTests = []struct {
	label string
	good  bool
}{
	{"0:100000:65536", true},
	{"0:0:4294967295", true}, // the first user namespace's own
	{"0:0:1,1:100000:65535", true},
	{"1:100000:65535,0:0:1", true},
	{"0:1000:65536", true},     // overlaps the IDs of the container
	{"0:1:1,1:0:1", true},      // two IDs swapped
	{"0:4294967294:1", true},   // the last ID
	{manyRanges(340, 0), true}, // as many as the kernel accepts
	{manyRanges(341, 0), false},
	{manyRanges(340, 100000), false}, // more bytes than it accepts
	{"0:0:99999999999999", false},
	{"99999999999999:0:1", false},
	{"0:0:4294967296", false},
	{"0:1:4294967295", false},
	{"0:4294967295:1", false},
	{"0:100000:0", false},
	{"1:100000:65536", false}, // no root
	{"0:100000:10,5:200000:10", false},
	{"0:100000:10,10:100009:10", false},
	{"0:100000:10,0:100000:10", false},
	{"-1:-1:-2", false},
	{"0:-5:10", false},
	{"0:100000", false},
	{"0:100000:65536:", false},
	{"0:100000:65536,", false},
	{",0:100000:65536", false},
	{" 0:100000:65536", false},
	{"0:100000:65536,uidmap=0", false},
	{"0:100000:0x10", false},
	{"0:100000:65536\n", false},
	{":", false},
	{strings.Repeat("0:0:1,", 100000), false},
}

// TestMappingLabels compares which mappings are refused with the kernel.
func TestMappingLabels(t *testing.T) {
	hostcheck.Root(t)
	const other = "0:100000:65536"
	for _, tc := range mappingTests {
		for _, both := range [][2]string{{tc.label, other}, {other, tc.label}} {
			uids, gids, ok, err := snapshot.ParseMapping(map[string]string{
				snapshots.LabelSnapshotUIDMapping: both[0], snapshots.LabelSnapshotGIDMapping: both[1],
			})
			if (err == nil) != tc.good || err != nil && !errdefs.IsInvalidArgument(err) {
				t.Errorf("%.60q: %v", both, err)
			}
			if err != nil && len(err.Error()) > 500 {
				t.Errorf("the error for %.60q has %d bytes", both, len(err.Error()))
			}
			if !ok || !tc.good {
				continue
			}
			ns, err := mount.GetUsernsFD(uids, gids)
			if err != nil {
				t.Errorf("the kernel refuses %.60q: %v", both, err)
				continue
			}
			ns.Close()
		}
	}
	for _, labels := range []map[string]string{
		{snapshots.LabelSnapshotUIDMapping: other},
		{snapshots.LabelSnapshotGIDMapping: other},
		{snapshots.LabelSnapshotUIDMapping: other, snapshots.LabelSnapshotGIDMapping: ""},
	} {
		if _, _, _, err := snapshot.ParseMapping(labels); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%v: %v", labels, err)
		}
	}
	for _, labels := range []map[string]string{
		nil,
		{snapshots.LabelSnapshotUIDMapping: "", snapshots.LabelSnapshotGIDMapping: ""},
	} {
		if _, _, ok, err := snapshot.ParseMapping(labels); ok || err != nil {
			t.Errorf("%v: a mapping, %v", labels, err)
		}
	}
}

// TestBadMapping has snapshots with bad mappings refused, and nothing left of them.
func TestBadMapping(t *testing.T) {
	snapshottest.NeedFanotify(t)
	root := t.TempDir()
	n := snapshottest.New(t, root)
	t.Cleanup(func() { stopForTest(t, n) })
	ctx := t.Context()
	for i, tc := range mappingTests {
		if tc.good {
			continue
		}
		key := fmt.Sprint("key", i)
		if _, err := n.Prepare(ctx, key, "", mappingLabels(tc.label, "0:1:1")); !errdefs.IsInvalidArgument(err) {
			t.Errorf("Prepare with %.60q: %v", tc.label, err)
		}
		if _, err := n.View(ctx, key, "", mappingLabels("0:1:1", tc.label)); !errdefs.IsInvalidArgument(err) {
			t.Errorf("View with %.60q: %v", tc.label, err)
		}
		if _, err := n.Stat(ctx, key); !errdefs.IsNotFound(err) {
			t.Errorf("%.60q left a snapshot: %v", tc.label, err)
		}
	}
	for _, dir := range []string{dirs.New, dirs.Snapshots} {
		err := filepath.WalkDir(filepath.Join(root, dir), func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.Name() == "fs" {
				t.Errorf("%s is left", path)
			}
			return err
		})
		if err != nil {
			t.Error(err)
		}
	}
}
