package layer_test

import (
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/lacuna-snapshotter/lacuna/fetcher/layertest"
	"github.com/lacuna-snapshotter/lacuna/fetcher/registry/registrytest"
	"github.com/lacuna-snapshotter/lacuna/snapshot/layer"
	"github.com/lacuna-snapshotter/lacuna/snapshot/snapshottest"
)

// TestOverlayOutlivesSnapshot evicts or removes a layer while an overlay on it is
// mounted: no hole may read as zeros, and when the overlay is unmounted the layer is
// evicted or removed.
func TestOverlayOutlivesSnapshot(t *testing.T) {
	snapshottest.NeedFanotify(t)
	ctx := t.Context()
	for name, take := range map[string]func(t *testing.T, n *snapshottest.Node) error{
		"evict": func(t *testing.T, n *snapshottest.Node) error {
			n.Layers.Cache.MaxBytes = 1
			for _, d := range n.Layers.All() {
				l, _ := n.Layers.Look(d)
				if err := l.Blob().Fill(ctx, 0, 1); err != nil {
					t.Fatal(err)
				}
			}
			return n.Layers.EvictOnce()
		},
		"remove": func(_ *testing.T, n *snapshottest.Node) error {
			return errors.Join(n.Remove(ctx, "chain0"), n.Cleanup(ctx))
		},
	} {
		t.Run(name, func(t *testing.T) {
			root := t.TempDir()
			n := snapshottest.New(t, root)
			t.Cleanup(func() { _ = n.TearDown() })
			img := snapshottest.LazyImage(t, n)
			if _, err := n.Prepare(ctx, "container", "chain0"); err != nil {
				t.Fatal(err)
			}
			// Without an upper directory, which is removed with its snapshot.
			dir := snapshottest.Mounted(t, []mount.Mount{{Type: "overlay", Source: "overlay", Options: []string{"lowerdir=" + n.Mountpoint(t, img.Layers[0]) + ":" + t.TempDir()}}})
			if err := n.Remove(ctx, "container"); err != nil {
				t.Fatal(err)
			}
			if err := take(t, n); err != nil {
				t.Fatal(err)
			}
			if s := look(t, n, img.Layers[0]).State(); s != layer.Leaving {
				t.Errorf("the layer is %s", s)
			}
			if !n.Layers.Served() {
				t.Error("the holders would be released while an overlay has holes")
			}
			if got, want := snapshottest.Hashes(t, dir), img.Unpacked(t); got != want {
				t.Errorf("the tree below the overlay differs:\n%s\nwant\n%s", got, want)
			}
			// It becomes ready again while the overlay is mounted.
			if name == "remove" {
				if _, err := n.Prepare(ctx, "k", "", img.Labels(0, "chain0")); !errdefs.IsAlreadyExists(err) {
					t.Fatal(err)
				}
			}
			view, err := n.View(ctx, "view", "chain0")
			if err != nil {
				t.Fatal(err)
			}
			if got, err := snapshottest.Tree(t, view); err != nil || got != img.Unpacked(t) {
				t.Errorf("the tree differs: %v", err)
			}
			if err := errors.Join(n.Remove(ctx, "view"), take(t, n), mount.UnmountAll(dir, 0)); err != nil {
				t.Fatal(err)
			}
			snapshottest.Eventually(t, "the layer is evicted or removed after its overlay", func() bool {
				count, _ := states(n)
				return count[layer.Leaving]+count[layer.Filling]+count[layer.Complete] == 0
			})
		})
	}
}

// TestSameDigits has two layers whose digests have the same first digits: each has its
// own mountpoint.
func TestSameDigits(t *testing.T) {
	snapshottest.NeedFanotify(t)
	root := t.TempDir()
	n := snapshottest.New(t, root)
	img := snapshottest.NewImage(t, 1)
	img.Index(t, n, 0)
	d := digest.FromBytes(img.Layers[0])
	n.Layers.Name(d.Encoded()[:12], digest.FromString("another"))
	if _, err := n.Prepare(t.Context(), "k", "", img.Labels(0, "chain0")); !errdefs.IsAlreadyExists(err) {
		t.Fatal(err)
	}
	first := n.Mountpoint(t, img.Layers[0])
	if filepath.Base(first) != d.Encoded()[:13] {
		t.Errorf("mounted at %s", first)
	}
	if err := n.TearDown(); err != nil {
		t.Fatal(err)
	}
	n = snapshottest.New(t, root) // the name is in layer.json
	t.Cleanup(func() { _ = n.TearDown() })
	if again := n.Mountpoint(t, img.Layers[0]); again != first {
		t.Errorf("mounted at %s, was at %s", again, first)
	}
	img.ReadsRight(t, n)
}

// TestManyUsers measures Mounts with 200 containers on 50 layers, idle and while
// layers are evicted. Its figures are for docs/reliability.md.
func TestManyUsers(t *testing.T) {
	snapshottest.NeedFanotify(t)
	n, err := snapshottest.Start(t.Context(), t.TempDir(), nil, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = n.TearDown() })
	img := &snapshottest.Image{Reg: registrytest.New(t)}
	const layers, containers = 50, 200
	parent := ""
	for i := range layers {
		l := layertest.Gzip(t, layertest.Tar(t, 2, uint64(i+1)))
		img.Layers = append(img.Layers, l)
		img.Reg.AddBlob(l)
		img.Index(t, n, i)
		name := fmt.Sprint("chain", i)
		if _, err := n.Prepare(t.Context(), "x"+name, parent, img.Labels(i, name)); !errdefs.IsAlreadyExists(err) {
			t.Fatal(err)
		}
		parent = name
	}
	fillAll(t, n)
	for i := range containers {
		if _, err := n.Prepare(t.Context(), fmt.Sprint("c", i), parent); err != nil {
			t.Fatal(err)
		}
	}
	mounts := func() time.Duration {
		began := time.Now()
		if _, err := n.Mounts(t.Context(), "c7"); err != nil {
			t.Fatal(err)
		}
		return time.Since(began)
	}
	idle := mounts()
	n.Layers.Cache.MaxBytes = 1
	done := make(chan error, 1)
	go func() { done <- n.Layers.EvictOnce() }()
	busy := mounts()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	t.Logf("Mounts with %d layers and %d containers: %s, during an eviction %s", layers, containers, idle, busy)
	if count, _ := states(n); count[layer.Complete] != layers {
		t.Errorf("%v", count)
	}
}
