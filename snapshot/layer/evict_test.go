package layer_test

import (
	"testing"

	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/opencontainers/go-digest"

	"github.com/lacuna-snapshotter/lacuna/snapshot/layer"
	"github.com/lacuna-snapshotter/lacuna/snapshot/snapshottest"
)

// states counts layers by state and sums their disk.
func states(n *snapshottest.Node) (count map[layer.State]int, disk int64) {
	count = map[layer.State]int{}
	list, _ := n.Layers.Status()
	for _, l := range list {
		count[l.State]++
		disk += l.Allocated
	}
	return count, disk
}

func fillAll(t *testing.T, n *snapshottest.Node) {
	t.Helper()
	for _, d := range n.Layers.All() {
		l, _ := n.Layers.Look(d)
		if err := l.Blob().Fill(t.Context(), 0, l.Blob().Size()); err != nil {
			t.Fatal(err)
		}
	}
}

// TestEviction evicts layers that nothing uses, and only those. They are mounted again
// when a snapshot asks for them.
func TestEviction(t *testing.T) {
	snapshottest.NeedFanotify(t)
	ctx := namespaces.WithNamespace(t.Context(), "test")
	n := snapshottest.New(t, t.TempDir())
	t.Cleanup(func() {
		if err := n.TearDown(); err != nil {
			t.Error(err)
		}
	})
	img := snapshottest.NewImage(t, 3)
	for layer := range img.Layers {
		img.Index(t, n, layer)
	}
	snapshottest.PrepareAll(t, ctx, n, img)
	want := img.Unpacked(t)
	mounts, err := n.View(ctx, "view", "chain2")
	if err != nil {
		t.Fatal(err)
	}
	if got, err := snapshottest.Tree(t, mounts); err != nil || got != want {
		t.Fatal("the tree differs", err)
	}
	fillAll(t, n) // files that a layer above hides were not read
	_, full := states(n)
	n.Layers.Cache.MaxBytes = 1

	// The view may be mounted anywhere.
	if err := n.Layers.EvictOnce(); err != nil {
		t.Fatal(err)
	}
	if count, disk := states(n); count["evicted"] != 0 || disk < full/2 { // not exactly full: delayed allocation
		t.Errorf("layers in use were evicted: %v, %d bytes of %d remain", count, disk, full)
	}
	if !n.Layers.Over() {
		t.Error("backfill does not pause for a cache over its limit")
	}
	if got, err := snapshottest.Tree(t, mounts); err != nil || got != want {
		t.Fatal("the tree differs", err)
	}
	if err := n.Remove(ctx, "view"); err != nil {
		t.Fatal(err)
	}

	// A pin, as Prepare has it until the snapshot is committed.
	release, err := n.Layers.Ensure(ctx, layer.Target{Layer: digest.FromBytes(img.Layers[0])})
	if err != nil {
		t.Fatal(err)
	}
	if err := n.Layers.EvictOnce(); err != nil {
		t.Fatal(err)
	}
	if count, _ := states(n); count["evicted"] != 2 {
		t.Errorf("%v, want two evicted and the pinned one not", count)
	}
	release()
	if err := n.Layers.EvictOnce(); err != nil {
		t.Fatal(err)
	}
	count, empty := states(n)
	if count["evicted"] != 3 || empty >= full/2 {
		t.Errorf("%v, %d bytes of %d are left", count, empty, full)
	}

	for round := range 2 { // the second time over a layer that is mounted
		if mounts, err = n.View(ctx, "again", "chain2"); err != nil {
			t.Fatal(err)
		}
		if got, err := snapshottest.Tree(t, mounts); err != nil || got != want {
			t.Fatalf("round %d: the tree differs: %v", round, err)
		}
		if err := n.Remove(ctx, "again"); err != nil {
			t.Fatal(err)
		}
	}
	// The longest unused layer is evicted first.
	fillAll(t, n)
	_, full = states(n)
	n.Layers.Cache.MaxBytes = full - 1
	if err := n.Layers.EvictOnce(); err != nil {
		t.Fatal(err)
	}
	if count, _ := states(n); count["evicted"] != 1 {
		t.Errorf("%v, want one evicted", count)
	}
	for _, key := range []string{"chain2", "chain1", "chain0"} {
		if err := n.Remove(ctx, key); err != nil {
			t.Error(err)
		}
	}
	if err := n.Cleanup(ctx); err != nil {
		t.Error(err)
	}
	if count, disk := states(n); len(count) != 0 || disk != 0 {
		t.Errorf("left: %v, %d bytes", count, disk)
	}
}
