package snapshot_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/lacuna-snapshotter/lacuna/snapshot/dirs"
	"github.com/lacuna-snapshotter/lacuna/snapshot/snapshottest"
)

// TestSecondNamespace pulls an image in a second namespace of containerd: the snapshot's
// name is taken, and containers can be created all the same.
func TestSecondNamespace(t *testing.T) {
	snapshottest.NeedFanotify(t)
	n := snapshottest.New(t, t.TempDir())
	t.Cleanup(func() { _ = n.TearDown() })
	img := snapshottest.LazyImage(t, n)
	if _, err := n.Prepare(t.Context(), "second/1/extract", "", img.Labels(0, "chain0")); !errdefs.IsAlreadyExists(err) {
		t.Fatal(err)
	}
	for i := range 3 {
		if _, err := n.Prepare(t.Context(), fmt.Sprint("container", i), "chain0"); err != nil {
			t.Error(err)
		}
	}
}

// TestOtherParent has two namespaces that have each unpacked the lower layer into a
// snapshot of their own, below the same chain ID.
func TestOtherParent(t *testing.T) {
	snapshottest.NeedFanotify(t)
	ctx := t.Context()
	n := snapshottest.New(t, t.TempDir())
	t.Cleanup(func() { _ = n.TearDown() })
	img := snapshottest.NewImage(t, 1)
	img.Index(t, n, 0)
	pull := func(ns string) {
		t.Helper()
		if _, err := n.Prepare(ctx, ns+"/extract1", ns+"/chain0", img.Labels(0, "chain1")); !errdefs.IsAlreadyExists(err) {
			t.Fatal(err)
		}
		found := 0
		err := n.Walk(ctx, func(_ context.Context, info snapshots.Info) error {
			found++
			return nil
		}, `labels."containerd.io/snapshot.ref"==chain1,parent=="`+ns+`/chain0"`)
		if err != nil || found != 1 {
			t.Errorf("%s: %d snapshots for containerd to find, %v", ns, found, err)
		}
	}
	for _, ns := range []string{"first", "second"} {
		if _, err := n.Prepare(ctx, ns+"/extract", ""); err != nil {
			t.Fatal(err)
		}
		if err := n.Commit(ctx, ns+"/chain0", ns+"/extract"); err != nil {
			t.Fatal(err)
		}
		pull(ns)
		pull(ns) // again
	}
	if err := n.Remove(ctx, "chain1"); err != nil { // the first's
		t.Fatal(err)
	}
	pull("second") // the plain name is free, and the second has one of another name
	pull("first")
}

// TestRolledBackTransaction finds the directory of a snapshot whose transaction was
// rolled back: bbolt gives its ID to the next snapshot.
func TestRolledBackTransaction(t *testing.T) {
	snapshottest.NeedFanotify(t)
	root := t.TempDir()
	n := snapshottest.New(t, root)
	t.Cleanup(func() { _ = n.TearDown() })
	for id := range 10 {
		if err := os.MkdirAll(filepath.Join(root, dirs.Snapshots, fmt.Sprint(id), "fs", "of another"), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	mounts, err := n.Prepare(t.Context(), "container", "")
	if err != nil {
		t.Fatal(err)
	}
	if left, err := os.ReadDir(mounts[0].Source); err != nil || len(left) > 0 {
		t.Errorf("a new snapshot has %v, %v", left, err)
	}
}

// TestPullDuringCleanup pulls an image again and starts a container while Cleanup
// runs, many times.
func TestPullDuringCleanup(t *testing.T) {
	snapshottest.NeedFanotify(t)
	ctx := t.Context()
	n := snapshottest.New(t, t.TempDir())
	t.Cleanup(func() { _ = n.TearDown() })
	img := snapshottest.LazyImage(t, n)
	want := img.Unpacked(t)
	for round := range 40 {
		if err := n.Remove(ctx, "chain0"); err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		for range 2 {
			wg.Go(func() {
				if err := n.Cleanup(ctx); err != nil {
					t.Error(err)
				}
			})
		}
		time.Sleep(time.Duration(round) * 100 * time.Microsecond)
		if _, err := n.Prepare(ctx, "k", "", img.Labels(0, "chain0")); !errdefs.IsAlreadyExists(err) {
			t.Fatal(err)
		}
		mounts, err := n.Prepare(ctx, "container", "chain0")
		if err != nil {
			t.Fatal(err)
		}
		dir := snapshottest.Mounted(t, mounts)
		wg.Wait()
		if snapshottest.Hashes(t, dir) != want {
			t.Fatal("the container's tree differs")
		}
		if _, err := n.Mounts(ctx, "container"); err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(mount.UnmountAll(dir, 0), n.Remove(ctx, "container")); err != nil {
			t.Fatal(err)
		}
	}
}

// TestLabels has a client set and remove labels that only the snapshotter may set.
func TestLabels(t *testing.T) {
	snapshottest.NeedFanotify(t)
	ctx := t.Context()
	n := snapshottest.New(t, t.TempDir())
	t.Cleanup(func() { _ = n.TearDown() })
	img := snapshottest.LazyImage(t, n)
	claim := snapshots.WithLabels(map[string]string{"lacuna/layer": digest.FromBytes(img.Layers[0]).String()})
	if _, err := n.Prepare(ctx, "k", "", claim); err != nil {
		t.Fatal(err)
	}
	if err := n.Commit(ctx, "mine", "k", claim); err != nil {
		t.Fatal(err)
	}
	if _, err := n.Update(ctx, snapshots.Info{Name: "mine", Labels: map[string]string{"lacuna/layer": "x"}}, "labels.lacuna/layer"); err != nil {
		t.Fatal(err)
	}
	info, err := n.Stat(ctx, "mine")
	if _, lazy := info.Labels["lacuna/layer"]; err != nil || lazy {
		t.Errorf("%+v, %v", info, err)
	}
	if _, err := n.Update(ctx, snapshots.Info{Name: "chain0", Labels: map[string]string{"a": "b"}}); err != nil {
		t.Fatal(err)
	}
	info, err = n.Stat(ctx, "chain0")
	if _, lazy := info.Labels["lacuna/layer"]; err != nil || !lazy || info.Labels["a"] != "b" {
		t.Errorf("%+v, %v", info, err)
	}
}
