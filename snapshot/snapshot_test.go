package snapshot_test

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/testsuite"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/lacuna-snapshotter/lacuna/snapshot/snapshottest"
)

// TestSuite runs containerd's own suite.
func TestSuite(t *testing.T) {
	snapshottest.NeedFanotify(t)
	// From this name the suite knows that overlayfs cannot rename a lower layer's
	// directory; all other tests are the same for every snapshotter.
	testsuite.SnapshotterSuite(t, "overlayfs", func(ctx context.Context, root string) (snapshots.Snapshotter, func() error, error) {
		n, err := snapshottest.Start(ctx, root, nil, slog.New(slog.DiscardHandler))
		if err != nil {
			return nil, nil, err
		}
		return n.Snapshotter, n.TearDown, nil
	})
}

func TestLazyLayers(t *testing.T) {
	snapshottest.NeedFanotify(t)
	ctx := namespaces.WithNamespace(t.Context(), "test")
	root := t.TempDir()
	n := snapshottest.New(t, root)
	img := snapshottest.NewImage(t, 3)
	for layer := range img.Layers {
		img.Index(t, n, layer)
	}
	snapshottest.PrepareAll(t, ctx, n, img)
	for _, r := range img.Reg.Requests() {
		if !strings.HasSuffix(r, " bytes=0-0") {
			t.Errorf("preparing indexed layers asked the registry for more than whether they can be fetched: %q", r)
		}
	}
	before, err := n.Usage(ctx, "chain2")
	if err != nil || before.Inodes == 0 {
		t.Errorf("usage %+v, %v", before, err)
	}
	mounts, err := n.View(ctx, "view", "chain2")
	if err != nil {
		t.Fatal(err)
	}
	got, err := snapshottest.Tree(t, mounts)
	if want := img.Unpacked(t); err != nil || got != want {
		t.Fatalf("the tree differs: %v\ngot  %.400s\nwant %.400s", err, got, want)
	}
	after, err := n.Usage(ctx, "chain2")
	if err != nil || after.Size <= before.Size {
		t.Errorf("usage did not grow: %+v, %+v, %v", before, after, err)
	}
	// The same layers for another chain need nothing new.
	if _, err := n.Prepare(ctx, "again", "", img.Labels(0, "other")); !errdefs.IsAlreadyExists(err) {
		t.Fatal(err)
	}
	if len(n.Status()) != 3 {
		t.Errorf("%d layers", len(n.Status()))
	}
	// Containers write on top.
	mounts, err = n.Prepare(ctx, "container", "chain2")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := mount.All(mounts, dir); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "dir0", "file0"), []byte("changed"), 0o644); err != nil {
		t.Error(err)
	}
	if err := mount.UnmountAll(dir, 0); err != nil {
		t.Fatal(err)
	}

	if err := n.Remove(ctx, "chain2"); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("removing a parent: %v", err)
	}
	if err := n.Cleanup(ctx); err != nil || len(n.Status()) != 3 {
		t.Errorf("cleanup took layers in use: %v", err)
	}
	for _, key := range []string{"container", "view", "chain2", "chain1"} {
		if err := n.Remove(ctx, key); err != nil {
			t.Errorf("remove %s: %v", key, err)
		}
	}
	if err := n.Cleanup(ctx); err != nil {
		t.Error(err)
	}
	if len(n.Status()) != 1 {
		t.Errorf("%d layers left, want the one of chain0 and other", len(n.Status()))
	}
	for _, key := range []string{"chain0", "other"} {
		if err := n.Remove(ctx, key); err != nil {
			t.Error(err)
		}
	}
	if err := errors.Join(n.Cleanup(ctx), n.Stop()); err != nil {
		t.Error(err)
	}
	left, _ := os.ReadFile("/proc/self/mounts")
	if strings.Contains(string(left), root) {
		t.Error("mounts are left")
	}
}

func TestFallback(t *testing.T) {
	snapshottest.NeedFanotify(t)
	ctx := t.Context()
	n := snapshottest.New(t, t.TempDir())
	t.Cleanup(func() { _ = n.TearDown() })
	img := snapshottest.NewImage(t, 2)
	img.Index(t, n, 0)
	if _, err := n.Prepare(ctx, "k0", "", img.Labels(0, "chain0")); !errdefs.IsAlreadyExists(err) {
		t.Fatal(err)
	}
	mounts, err := n.Prepare(ctx, "k1", "chain0", img.Labels(1, "chain1"))
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range mounts {
		if m.ReadOnly() {
			t.Errorf("containerd would take %+v for a finished extraction", m)
		}
	}
	_, fallbacks := n.Layers.Status()
	if len(fallbacks) != 1 || !strings.Contains(fallbacks[0].Reason, "no index") {
		t.Errorf("%+v", fallbacks)
	}
	// An ordinary layer on a lazy one.
	if err := n.Commit(ctx, "chain1", "k1"); err != nil {
		t.Fatal(err)
	}
	if _, err := n.View(ctx, "v", "chain1"); err != nil {
		t.Error(err)
	}
}

func TestBadIndexes(t *testing.T) {
	snapshottest.NeedFanotify(t)
	for name, damage := range map[string]func(t *testing.T, img *snapshottest.Image, n *snapshottest.Node){
		"of another layer": func(t *testing.T, img *snapshottest.Image, n *snapshottest.Node) {
			img.Index(t, n, 1)
			if err := os.Rename(n.Store.Path(digest.FromBytes(img.Layers[1])), n.Store.Path(digest.FromBytes(img.Layers[0]))); err != nil {
				t.Fatal(err)
			}
		},
		"truncated": func(t *testing.T, img *snapshottest.Image, n *snapshottest.Node) {
			img.Index(t, n, 0)
			if err := os.Truncate(n.Store.Path(digest.FromBytes(img.Layers[0])), 200); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			n := snapshottest.New(t, t.TempDir())
			t.Cleanup(func() { _ = n.TearDown() })
			img := snapshottest.NewImage(t, 2)
			damage(t, img, n)
			if _, err := n.Prepare(t.Context(), "k", "", img.Labels(0, "chain0")); err != nil {
				t.Errorf("a bad index must lead to a fallback, not to %v", err)
			}
			if _, fallbacks := n.Layers.Status(); len(fallbacks) != 1 {
				t.Errorf("%+v", fallbacks)
			}
		})
	}
}
