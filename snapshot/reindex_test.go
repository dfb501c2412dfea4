package snapshot

import (
	"bytes"
	"errors"
	"os"
	"testing"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/lacuna-snapshotter/lacuna/fetcher/index"
	"github.com/lacuna-snapshotter/lacuna/fetcher/spans"
)

// lazyImage is an image of one layer, which a node has prepared lazily.
func lazyImage(t *testing.T, n *node) *image {
	t.Helper()
	img := newImage(t, 1)
	img.index(t, n, 0)
	prepareAll(t, t.Context(), n, img)
	return img
}

// readsRight has a process read all of the image's only layer.
func (i *image) readsRight(t *testing.T, n *node) {
	t.Helper()
	target := n.mountpoint(t, i.layers[0])
	got, err := tree(t, []mount.Mount{{Type: "bind", Source: target, Options: []string{"ro", "rbind"}}})
	if err != nil || got != i.unpacked(t) {
		t.Errorf("the tree differs: %v", err)
	}
}

// TestIndexMadeAnew replaces the index of a mounted layer in the store, as
// lacunactl index create may.
func TestIndexMadeAnew(t *testing.T) {
	needFanotify(t)
	root := t.TempDir()
	n := startForTest(t, root)
	img := lazyImage(t, n)
	d := digest.FromBytes(img.layers[0])
	other := spans.BuildOptions{SpanSize: 8 << 10}
	if _, _, err := index.Create(t.Context(), bytes.NewReader(img.layers[0]), n.store.Path(d), other, index.Expect{}); err != nil {
		t.Fatal(err)
	}
	if err := n.tearDown(); err != nil {
		t.Fatal(err)
	}
	n = startForTest(t, root)
	t.Cleanup(func() { _ = n.tearDown() })
	img.readsRight(t, n)
}

// TestBlobOfAnotherIndex pulls the image of a layer whose blob was filled by
// another layout, which nothing on the disk tells any more.
func TestBlobOfAnotherIndex(t *testing.T) {
	needFanotify(t)
	root := t.TempDir()
	n := startForTest(t, root)
	img := lazyImage(t, n)
	layer := n.layer(t, img.layers[0])
	blob, files := layer.serving.blob, layer.files
	if err := blob.Fill(t.Context(), 0, blob.Size()); err != nil {
		t.Fatal(err)
	}
	if err := n.tearDown(); err != nil {
		t.Fatal(err)
	}
	for name, b := range map[string][]byte{
		"blob":       bytes.Repeat([]byte("other bytes "), int(blob.Size()/12+1))[:blob.Size()],
		"layer.json": []byte("{}"),
	} {
		if err := errors.Join(os.Remove(files.path(name)), os.WriteFile(files.path(name), b, 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	n = startForTest(t, root)
	t.Cleanup(func() { _ = n.tearDown() })
	if _, err := n.Prepare(t.Context(), "mend", "", img.labels(0, "mended")); !errdefs.IsAlreadyExists(err) {
		t.Fatal(err)
	}
	img.readsRight(t, n)
}

// TestStateOfAnotherIndex finds a layer whose directory has lost its state, as when a
// daemon died while it mended it, and another index in the store: what is mounted
// goes by one of them in all.
func TestStateOfAnotherIndex(t *testing.T) {
	needFanotify(t)
	root := t.TempDir()
	n := startForTest(t, root)
	img := lazyImage(t, n)
	files := n.layer(t, img.layers[0]).files
	if err := n.tearDown(); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(files.path("layer.json")); err != nil {
		t.Fatal(err)
	}
	other := spans.BuildOptions{SpanSize: 8 << 10}
	if _, _, err := index.Create(t.Context(), bytes.NewReader(img.layers[0]), n.store.Path(files.Layer), other, index.Expect{}); err != nil {
		t.Fatal(err)
	}
	n = startForTest(t, root)
	t.Cleanup(func() { _ = n.tearDown() })
	img.readsRight(t, n)
	if now := n.layer(t, img.layers[0]).files; now.SpanSize != 8<<10 || now.dir != files.dir {
		t.Errorf("%+v", now)
	}
}
