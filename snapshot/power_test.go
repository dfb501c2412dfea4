package snapshot_test

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/lacuna-snapshotter/lacuna/internal/hostcheck"
	"github.com/lacuna-snapshotter/lacuna/snapshot/snapshottest"
)

// TestPowerLossAfterPull simulates a loss of power on a real file system: it copies the
// device below a mounted ext4 after each layer of a pull. Each snapshot that exists
// afterwards has its files, and the next Cleanup removes everything else.
func TestPowerLossAfterPull(t *testing.T) {
	snapshottest.NeedFanotify(t)
	hostcheck.Tool(t, "mke2fs")
	ctx := t.Context()
	sh := func(script string, args ...string) {
		t.Helper()
		if out, err := exec.Command("sh", append([]string{"-ec", script, "sh"}, args...)...).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", script, err, out)
		}
	}
	attach := func(disk, dir string) {
		t.Helper()
		sh(`mkdir -p "$2"; mount -o loop "$1" "$2"`, disk, dir)
		t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	}
	top := t.TempDir()
	disk, live := filepath.Join(top, "disk"), filepath.Join(top, "live")
	sh(`truncate -s 128M "$1"; mke2fs -q -t ext4 "$1"`, disk)
	attach(disk, live)
	n := snapshottest.New(t, live)
	t.Cleanup(func() { _ = n.TearDown() })
	img := snapshottest.NewImage(t, 3)
	for l := range img.Layers {
		img.Index(t, n, l)
	}
	sh(`sync -f "$1"`, live) // the indexes were there before
	names := []string{"chain0", "chain1", "chain2"}
	var disks []string
	parent := ""
	for l, name := range names {
		if _, err := n.Prepare(ctx, "extract-"+name, parent, img.Labels(l, name)); !errdefs.IsAlreadyExists(err) {
			t.Fatal(err)
		}
		parent = name
		disks = append(disks, disk+name)
		sh(`cp --sparse=always "$1" "$2"`, disk, disk+name) // containerd has its answer; the power fails
	}
	for have, copied := range disks {
		after := filepath.Join(top, "after")
		attach(copied, after)
		rebooted := snapshottest.New(t, after)
		for _, name := range names[:have+1] {
			if _, err := rebooted.View(ctx, "view of "+name, name); err != nil {
				t.Errorf("power went after %s: %v", names[have], err)
			}
		}
		if have == len(names)-1 {
			view, err := rebooted.Mounts(ctx, "view of chain2")
			if err != nil {
				t.Fatal(err)
			}
			if got, err := snapshottest.Tree(t, view); err != nil || got != img.Unpacked(t) {
				t.Errorf("the tree differs: %v", err)
			}
		}
		if err := rebooted.Cleanup(ctx); err != nil || len(rebooted.Status()) != have+1 {
			t.Errorf("%d layers are left, %v", len(rebooted.Status()), err)
		}
		if err := errors.Join(rebooted.TearDown(), unix.Unmount(after, 0), os.Remove(copied)); err != nil {
			t.Fatal(err)
		}
	}
}
