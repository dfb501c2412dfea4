package layer_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/opencontainers/go-digest"

	"github.com/lacuna-snapshotter/lacuna/ondemand/fanotify"
	"github.com/lacuna-snapshotter/lacuna/snapshot/layer"
	"github.com/lacuna-snapshotter/lacuna/snapshot/snapshottest"
)

// TestDeathBeforeMountsAreReplaced has all holders of the group die, and then the next
// daemon, whose group is held, before it has replaced the mounts: the daemon after it
// adopts that group, and must replace them.
func TestDeathBeforeMountsAreReplaced(t *testing.T) {
	snapshottest.NeedFanotify(t)
	root := t.TempDir()
	n := snapshottest.New(t, root)
	img := snapshottest.LazyImage(t, n)
	if _, err := n.Prepare(t.Context(), "container", "chain0"); err != nil {
		t.Fatal(err)
	}
	if err := n.Stop(); err != nil { // closes the group's last descriptor
		t.Fatal(err)
	}
	// A process reads zeros, and the kernel caches them.
	snapshottest.MustRun(t, "sh", "-c", "cat $(find "+look(t, n, img.Layers[0]).Files().Target()+" -type f)")

	if err := layer.Abandon(root); err != nil {
		t.Fatal(err)
	}
	group, err := fanotify.NewGroup()
	if err != nil {
		t.Fatal(err)
	}
	held := snapshottest.Hold(t, &snapshottest.Node{Group: group})
	ctx, die := context.WithCancel(t.Context())
	die()
	if _, err := snapshottest.StartWith(ctx, root, group, false, snapshottest.Log(t)); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	if n, err = snapshottest.Start(t.Context(), root, held, snapshottest.Log(t)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = n.TearDown() })
	img.ReadsRight(t, n)
	if list, err := n.Layers.Unserved(t.Context()); err != nil || len(list) != 1 || len(list[0].Snapshots) != 1 {
		t.Errorf("%+v, %v", list, err)
	}

	// After that the mounts are adopted again.
	before := snapshottest.MustRun(t, "stat", "-c", "%d", n.Mountpoint(t, img.Layers[0]))
	held = snapshottest.Hold(t, n)
	if err := n.Stop(); err != nil {
		t.Fatal(err)
	}
	if n, err = snapshottest.Start(t.Context(), root, held, snapshottest.Log(t)); err != nil {
		t.Fatal(err)
	}
	if after := snapshottest.MustRun(t, "stat", "-c", "%d", n.Mountpoint(t, img.Layers[0])); string(after) != string(before) {
		t.Error("a mount that was served is replaced")
	}
}

// TestUnservedMounts has all holders of the group die: the next start replaces the
// mounts and names the snapshots on them, as long as these exist.
func TestUnservedMounts(t *testing.T) {
	snapshottest.NeedFanotify(t)
	ctx := namespaces.WithNamespace(t.Context(), "test")
	root := t.TempDir()
	n := snapshottest.New(t, root)
	img := snapshottest.NewImage(t, 2)
	for layer := range img.Layers {
		img.Index(t, n, layer)
	}
	snapshottest.PrepareAll(t, ctx, n, img)
	if _, err := n.Prepare(ctx, "container", "chain1"); err != nil {
		t.Fatal(err)
	}
	if _, err := n.Prepare(ctx, "other", "chain0"); err != nil {
		t.Fatal(err)
	}
	if list, err := n.Layers.Unserved(ctx); err != nil || len(list) != 0 {
		t.Fatal(list, err)
	}
	if err := n.Stop(); err != nil { // closes the group's last descriptor
		t.Fatal(err)
	}

	for range 2 { // also after another start
		n = snapshottest.New(t, root)
		list, err := n.Layers.Unserved(ctx)
		if err != nil || len(list) < 2 {
			t.Fatal(list, err)
		}
		for _, u := range list {
			want := []string{"container"}
			if u.Layer == digest.FromBytes(img.Layers[0]) {
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
		if got, err := snapshottest.Tree(t, mounts); err != nil || got != img.Unpacked(t) {
			t.Errorf("the tree differs: %v", err)
		}
		if err := errors.Join(n.Remove(ctx, "view"), n.Stop()); err != nil {
			t.Fatal(err)
		}
	}
	n = snapshottest.New(t, root)
	defer func() {
		if err := n.TearDown(); err != nil {
			t.Error(err)
		}
	}()
	if err := n.Remove(ctx, "container"); err != nil {
		t.Fatal(err)
	}
	list, err := n.Layers.Unserved(ctx)
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
	if list, err := n.Layers.Unserved(ctx); err != nil || len(list) != 0 {
		t.Errorf("%+v, %v", list, err)
	}
}

// TestUnservedListIsNotAll has a start that cannot write, or read, the list of layers that
// were not served: it serves the layers, and writes the list later.
func TestUnservedListIsNotAll(t *testing.T) {
	snapshottest.NeedFanotify(t)
	for name, damage := range map[string]func(path string) error{
		"cannot be written": func(path string) error { return os.MkdirAll(filepath.Join(path, "sub"), 0o700) },
		"is damaged":        func(path string) error { return os.WriteFile(path, []byte(`[{"layer":`), 0o600) },
	} {
		t.Run(name, func(t *testing.T) {
			root := t.TempDir()
			n := snapshottest.New(t, root)
			img := snapshottest.LazyImage(t, n)
			if _, err := n.Prepare(t.Context(), "container", "chain0"); err != nil {
				t.Fatal(err)
			}
			if err := errors.Join(n.Stop(), damage(filepath.Join(root, layer.UnservedFile))); err != nil {
				t.Fatal(err)
			}
			n = snapshottest.New(t, root)
			t.Cleanup(func() { _ = n.TearDown() })
			img.ReadsRight(t, n)
			if err := os.RemoveAll(filepath.Join(root, layer.UnservedFile)); err != nil {
				t.Fatal(err)
			}
			if list, err := n.Layers.Unserved(t.Context()); name == "cannot be written" && (err != nil || len(list) != 1) {
				t.Errorf("%+v, %v", list, err)
			}
		})
	}
}
