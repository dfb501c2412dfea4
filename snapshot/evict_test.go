package snapshot

import (
	"errors"
	"slices"
	"testing"

	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/opencontainers/go-digest"
)

// states counts layers by state and sums their disk.
func states(n *node) (count map[State]int, disk int64) {
	count = map[State]int{}
	list, _ := n.layers.Status()
	for _, l := range list {
		count[l.State]++
		disk += l.Allocated
	}
	return count, disk
}

func fillAll(t *testing.T, n *node) {
	t.Helper()
	for _, d := range n.layers.all() {
		l, _ := n.layers.snapshotOf(d)
		if err := l.serving.blob.Fill(t.Context(), 0, l.serving.blob.Size()); err != nil {
			t.Fatal(err)
		}
	}
}

// TestEviction empties layers that nothing uses, and only those, and mounts them
// again when they are wanted.
func TestEviction(t *testing.T) {
	needFanotify(t)
	ctx := namespaces.WithNamespace(t.Context(), "test")
	n := startForTest(t, t.TempDir())
	t.Cleanup(func() {
		if err := n.tearDown(); err != nil {
			t.Error(err)
		}
	})
	img := newImage(t, 3)
	for layer := range img.layers {
		img.index(t, n, layer)
	}
	prepareAll(t, ctx, n, img)
	want := img.unpacked(t)
	mounts, err := n.View(ctx, "view", "chain2")
	if err != nil {
		t.Fatal(err)
	}
	if got, err := tree(t, mounts); err != nil || got != want {
		t.Fatal("the tree differs", err)
	}
	fillAll(t, n) // files that a layer above hides were not read
	_, full := states(n)
	n.layers.Cache.MaxBytes = 1

	// The view may be mounted anywhere.
	if err := n.layers.evictOnce(); err != nil {
		t.Fatal(err)
	}
	if count, disk := states(n); count["evicted"] != 0 || disk < full/2 { // not exactly full: delayed allocation
		t.Errorf("layers in use were evicted: %v, %d bytes of %d are left", count, disk, full)
	}
	if !n.layers.over.Load() {
		t.Error("a cache over its limit is filled ahead")
	}
	if got, err := tree(t, mounts); err != nil || got != want {
		t.Fatal("the tree differs", err)
	}
	if err := n.Remove(ctx, "view"); err != nil {
		t.Fatal(err)
	}

	// A pin, as a Prepare under way has it.
	release, err := n.layers.Ensure(ctx, Target{Layer: digest.FromBytes(img.layers[0])})
	if err != nil {
		t.Fatal(err)
	}
	if err := n.layers.evictOnce(); err != nil {
		t.Fatal(err)
	}
	if count, _ := states(n); count["evicted"] != 2 {
		t.Errorf("%v, want two evicted and the pinned one not", count)
	}
	release()
	if err := n.layers.evictOnce(); err != nil {
		t.Fatal(err)
	}
	count, empty := states(n)
	if count["evicted"] != 3 || empty >= full/2 {
		t.Errorf("%v, %d bytes of %d are left", count, empty, full)
	}

	for round := range 2 { // the second time over a mount that lasts
		if mounts, err = n.View(ctx, "again", "chain2"); err != nil {
			t.Fatal(err)
		}
		if got, err := tree(t, mounts); err != nil || got != want {
			t.Fatalf("round %d: the tree differs: %v", round, err)
		}
		if err := n.Remove(ctx, "again"); err != nil {
			t.Fatal(err)
		}
	}
	// The limit holds for the longest unused first.
	fillAll(t, n)
	_, full = states(n)
	n.layers.Cache.MaxBytes = full - 1
	if err := n.layers.evictOnce(); err != nil {
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

// TestUnservedMounts has everything die that holds the group: the next start
// replaces the mounts and names who was on them, until they are gone.
func TestUnservedMounts(t *testing.T) {
	needFanotify(t)
	ctx := namespaces.WithNamespace(t.Context(), "test")
	root := t.TempDir()
	n := startForTest(t, root)
	img := newImage(t, 2)
	for layer := range img.layers {
		img.index(t, n, layer)
	}
	prepareAll(t, ctx, n, img)
	if _, err := n.Prepare(ctx, "container", "chain1"); err != nil {
		t.Fatal(err)
	}
	if _, err := n.Prepare(ctx, "other", "chain0"); err != nil {
		t.Fatal(err)
	}
	if list, err := n.Unserved(ctx); err != nil || len(list) != 0 {
		t.Fatal(list, err)
	}
	if err := n.stop(); err != nil { // the last descriptor goes with it
		t.Fatal(err)
	}

	for range 2 { // also after another start
		n = startForTest(t, root)
		list, err := n.Unserved(ctx)
		if err != nil || len(list) < 2 {
			t.Fatal(list, err)
		}
		for _, u := range list {
			want := []string{"container"}
			if u.Layer == digest.FromBytes(img.layers[0]) {
				want = []string{"container", "other"}
			}
			slices.Sort(u.Snapshots)
			if !slices.Equal(u.Snapshots, want) || u.Transport != "fanotify" || u.Found.IsZero() {
				t.Errorf("%+v, want %q", u, want)
			}
		}
		mounts, err := n.View(ctx, "view", "chain1")
		if err != nil {
			t.Fatal(err)
		}
		if got, err := tree(t, mounts); err != nil || got != img.unpacked(t) {
			t.Errorf("the tree differs: %v", err)
		}
		if err := errors.Join(n.Remove(ctx, "view"), n.stop()); err != nil {
			t.Fatal(err)
		}
	}
	n = startForTest(t, root)
	defer func() {
		if err := n.tearDown(); err != nil {
			t.Error(err)
		}
	}()
	if err := n.Remove(ctx, "container"); err != nil {
		t.Fatal(err)
	}
	list, err := n.Unserved(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, u := range list {
		if !slices.Equal(u.Snapshots, []string{"other"}) {
			t.Errorf("%+v", u)
		}
	}
	if err := n.Remove(ctx, "other"); err != nil {
		t.Fatal(err)
	}
	if list, err := n.Unserved(ctx); err != nil || len(list) != 0 {
		t.Errorf("%+v, %v", list, err)
	}
}
