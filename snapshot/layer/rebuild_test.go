package layer_test

import (
	"archive/tar"
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/snapshotters"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/lacuna-snapshotter/lacuna/erofs"
	"github.com/lacuna-snapshotter/lacuna/fetcher/index"
	"github.com/lacuna-snapshotter/lacuna/fetcher/layertest"
	"github.com/lacuna-snapshotter/lacuna/fetcher/registry/registrytest"
	"github.com/lacuna-snapshotter/lacuna/fetcher/spans"
	"github.com/lacuna-snapshotter/lacuna/snapshot/dirs"
	"github.com/lacuna-snapshotter/lacuna/snapshot/layer"
	"github.com/lacuna-snapshotter/lacuna/snapshot/snapshottest"
)

// TestSlowRegistryHoldsOnlyItsLayers rebuilds a quarantined layer from a registry that
// does not answer: meanwhile the trash is emptied and layers of other registries are
// rebuilt.
func TestSlowRegistryHoldsOnlyItsLayers(t *testing.T) {
	snapshottest.NeedFanotify(t)
	root := t.TempDir()
	n := snapshottest.New(t, root)
	slow, well := snapshottest.NewImage(t, 1), snapshottest.NewImage(t, 2)
	slow.Index(t, n, 0)
	labels := snapshots.WithLabels(map[string]string{
		snapshots.LabelSnapshotRef:             "slow",
		snapshotters.TargetRefLabel:            slow.Reg.Ref("latest"),
		snapshotters.TargetManifestDigestLabel: digest.FromString("a manifest").String(),
		snapshotters.TargetLayerDigestLabel:    digest.FromBytes(slow.Layers[0]).String(),
	})
	if _, err := n.Prepare(t.Context(), "k", "", labels); !errdefs.IsAlreadyExists(err) {
		t.Fatal(err)
	}
	well.Index(t, n, 1)
	if _, err := n.Prepare(t.Context(), "k", "", well.Labels(1, "well")); !errdefs.IsAlreadyExists(err) {
		t.Fatal(err)
	}
	bad, other := look(t, n, slow.Layers[0]).Files(), look(t, n, well.Layers[1]).Files()
	err := errors.Join(n.TearDown(), n.Store.Remove(bad.Layer), os.Remove(bad.Path("bootstrap")), os.Remove(other.Path("bootstrap")))
	if err != nil {
		t.Fatal(err)
	}
	gate := make(chan struct{})
	slow.Reg.RequireToken("x")
	for range 1000 {
		slow.Reg.FailTokens(registrytest.Until(gate))
	}
	t.Cleanup(func() { close(gate) })
	n = snapshottest.New(t, root)
	t.Cleanup(func() { _ = n.TearDown() })
	waits := func() bool { // for the registry, for the first time
		l := look(t, n, slow.Layers[0])
		return l.State() == layer.Quarantined && l.RetryWait() == 0
	}
	asked := len(slow.Reg.Requests())
	snapshottest.Eventually(t, "the registry is asked", func() bool { return len(slow.Reg.Requests()) > asked })
	if err := os.Mkdir(filepath.Join(root, dirs.Trash, "x"), 0o700); err != nil {
		t.Fatal(err)
	}
	snapshottest.Eventually(t, "the trash is empty and the other layer ready", func() bool {
		if !waits() {
			t.Fatal("only after the registry's timeout")
		}
		left, err := os.ReadDir(filepath.Join(root, dirs.Trash))
		return err == nil && len(left) == 0 && look(t, n, well.Layers[1]).State() == layer.Ready
	})
}

func TestRestartAndQuarantine(t *testing.T) {
	snapshottest.NeedFanotify(t)
	ctx := t.Context()
	root := t.TempDir()
	n := snapshottest.New(t, root)
	img := snapshottest.NewImage(t, 2)
	for layer := range img.Layers {
		img.Index(t, n, layer)
	}
	snapshottest.PrepareAll(t, ctx, n, img)
	broken := look(t, n, img.Layers[1]).Files()
	if err := n.TearDown(); err != nil { // as by a reboot: no mounts
		t.Fatal(err)
	}
	if err := os.Truncate(broken.Path("bootstrap"), 100); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(root, "layers", "half-made"), 0o700); err != nil {
		t.Fatal(err)
	}
	// Its index is missing for a while.
	away := n.Store.Path(digest.FromBytes(img.Layers[1]))
	if err := os.Rename(away, away+".away"); err != nil {
		t.Fatal(err)
	}
	n = snapshottest.New(t, root)
	if _, err := n.View(ctx, "good", "chain0"); err != nil {
		t.Errorf("a good layer: %v", err)
	}
	if _, err := n.View(ctx, "bad", "chain1"); !errdefs.IsUnavailable(err) {
		t.Errorf("a broken layer: %v", err)
	}
	if _, err := n.Stat(ctx, "bad"); !errdefs.IsNotFound(err) {
		t.Errorf("the failed view is left: %v", err)
	}
	layers, _ := n.Layers.Status()
	states := map[layer.State]int{}
	for _, l := range layers {
		states[l.State]++
	}
	if states[layer.Quarantined] != 1 || states[layer.Filling] != 1 {
		t.Errorf("states %v", states)
	}
	// containerd does not ask again: it is rebuilt in the background.
	if err := os.Rename(away+".away", away); err != nil {
		t.Fatal(err)
	}
	snapshottest.Eventually(t, "the broken layer is rebuilt", func() bool { return look(t, n, img.Layers[1]).State() == layer.Ready })
	mounts, err := n.View(ctx, "now", "chain1")
	if err != nil {
		t.Fatal(err)
	}
	if got, err := snapshottest.Tree(t, mounts); err != nil || got != img.Unpacked(t) {
		t.Errorf("the tree differs: %v", err)
	}
	if err := n.TearDown(); err != nil {
		t.Error(err)
	}
}

// TestQuarantinedIsHeld stops a daemon that could not serve a layer of an earlier
// daemon, on which a container runs: the holders must not be released.
func TestQuarantinedIsHeld(t *testing.T) {
	snapshottest.NeedFanotify(t)
	root := t.TempDir()
	n := snapshottest.New(t, root)
	img := snapshottest.LazyImage(t, n)
	mounts, err := n.Prepare(t.Context(), "container", "chain0")
	if err != nil {
		t.Fatal(err)
	}
	dir := snapshottest.Mounted(t, mounts)
	f := look(t, n, img.Layers[0]).Files()
	group := snapshottest.Hold(t, n)
	if err := errors.Join(n.Stop(), os.WriteFile(f.Path("layer.json"), []byte("{}"), 0o600), n.Store.Remove(f.Layer)); err != nil {
		t.Fatal(err)
	}
	if n, err = snapshottest.Start(t.Context(), root, group, snapshottest.Log(t)); err != nil {
		t.Fatal(err)
	}
	if look(t, n, img.Layers[0]).State() != layer.Quarantined || !n.Layers.Served() {
		t.Errorf("%s, served %v: the holders would be released", look(t, n, img.Layers[0]).State(), n.Layers.Served())
	}
	// Reads of its holes fail.
	if out, err := exec.Command("sh", "-c", "cat $(find "+dir+" -type f -size +8k)").Output(); err == nil {
		t.Errorf("read %d bytes of a layer that nothing serves", len(out))
	}
	if err := mount.UnmountAll(dir, 0); err != nil {
		t.Fatal(err)
	}
	if n.Layers.Served() {
		t.Error("served, although no process can reach it any more")
	}
	if err := n.TearDown(); err != nil {
		t.Error(err)
	}
}

// TestRebuildThatFailed rebuilds a layer from an index of another layout, which fails
// after the new directory is written, and opens it from the old one then. The next daemon
// serves the mount with the directory that it is of, also where the other one could not
// be removed.
func TestRebuildThatFailed(t *testing.T) {
	snapshottest.NeedFanotify(t)
	root := t.TempDir()
	n := snapshottest.New(t, root)
	img := impliedImage(t)
	img.Index(t, n, 0)
	snapshottest.PrepareAll(t, t.Context(), n, img)
	l := look(t, n, img.Layers[0])
	if err := l.Blob().Fill(t.Context(), 0, 1); err != nil {
		t.Fatal(err)
	}
	n.Layers.Cache.MaxBytes = 1
	if err := n.Layers.EvictOnce(); err != nil {
		t.Fatal(err)
	}
	other := spans.BuildOptions{Tar: erofs.Options{Implied: func(_ string, dir *erofs.Inode) { dir.Mode ^= 0o077 }}}
	if _, _, err := index.Create(t.Context(), bytes.NewReader(img.Layers[0]), n.Store.Path(l.Files().Layer), other, index.Expect{}); err != nil {
		t.Fatal(err)
	}
	layers, copied := filepath.Join(root, dirs.Layers), filepath.Join(t.TempDir(), "layers")
	fails := 2 // with the old directory, then with the new one
	n.Layers.Transport = &hooked{Transport: n.Server, mount: func() error {
		if fails--; fails < 0 {
			return nil
		}
		if fails == 0 {
			snapshottest.MustRun(t, "cp", "-a", "--sparse=always", layers, copied)
		}
		return errors.New("no memory")
	}}
	if _, err := n.Layers.Mountpoint(t.Context(), l.Files().Image()); err == nil {
		t.Fatal("mounted")
	}
	if entries, err := os.ReadDir(layers); err != nil || len(entries) != 1 {
		t.Errorf("%v are left, %v", entries, err)
	}
	snapshottest.Eventually(t, "the layer is opened", func() bool { return look(t, n, img.Layers[0]).State() == layer.Ready })
	if dir := look(t, n, img.Layers[0]).Files().Dir(); dir != l.Files().Dir() {
		t.Fatal("opened from", dir)
	}
	group := snapshottest.Hold(t, n)
	if err := n.Stop(); err != nil {
		t.Fatal(err)
	}
	snapshottest.MustRun(t, "cp", "-a", "--no-clobber", "--sparse=always", copied, root)
	if entries, err := os.ReadDir(layers); err != nil || len(entries) != 2 {
		t.Fatal(entries, err)
	}
	n, err := snapshottest.Start(t.Context(), root, group, snapshottest.Log(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = n.TearDown() })
	img.ReadsRight(t, n)
}

// impliedImage is an image of one layer with a directory that its tar does not name.
func impliedImage(t *testing.T) *snapshottest.Image {
	t.Helper()
	content := bytes.Repeat([]byte("some bytes "), 30_000)
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	err := w.WriteHeader(&tar.Header{Name: "implied/file", Mode: 0o644, Size: int64(len(content))})
	if err == nil {
		_, err = w.Write(content)
	}
	if err := errors.Join(err, w.Close()); err != nil {
		t.Fatal(err)
	}
	img := snapshottest.NewImage(t, 1)
	img.Tars[0], img.Layers[0] = b.Bytes(), layertest.Gzip(t, b.Bytes())
	img.Reg.AddBlob(img.Layers[0])
	return img
}
