package layer_test

import (
	"bytes"
	"errors"
	"os"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/lacuna-snapshotter/lacuna/fetcher/index"
	"github.com/lacuna-snapshotter/lacuna/fetcher/spans"
	"github.com/lacuna-snapshotter/lacuna/snapshot/snapshottest"
)

// TestIndexReplaced replaces the index of a mounted layer in the store, as
// lacunactl index create may.
func TestIndexReplaced(t *testing.T) {
	snapshottest.NeedFanotify(t)
	root := t.TempDir()
	n := snapshottest.New(t, root)
	img := snapshottest.LazyImage(t, n)
	d := digest.FromBytes(img.Layers[0])
	other := spans.BuildOptions{SpanSize: 8 << 10}
	if _, _, err := index.Create(t.Context(), bytes.NewReader(img.Layers[0]), n.Store.Path(d), other, index.Expect{}); err != nil {
		t.Fatal(err)
	}
	if err := n.TearDown(); err != nil {
		t.Fatal(err)
	}
	n = snapshottest.New(t, root)
	t.Cleanup(func() { _ = n.TearDown() })
	img.ReadsRight(t, n)
}

// TestBlobOfAnotherIndex pulls the image of a layer whose blob was filled in another
// layout, after the state that told so was lost.
func TestBlobOfAnotherIndex(t *testing.T) {
	snapshottest.NeedFanotify(t)
	root := t.TempDir()
	n := snapshottest.New(t, root)
	img := snapshottest.LazyImage(t, n)
	l := look(t, n, img.Layers[0])
	blob, files := l.Blob(), l.Files()
	if err := blob.Fill(t.Context(), 0, blob.Size()); err != nil {
		t.Fatal(err)
	}
	if err := n.TearDown(); err != nil {
		t.Fatal(err)
	}
	for name, b := range map[string][]byte{
		"blob":       bytes.Repeat([]byte("other bytes "), int(blob.Size()/12+1))[:blob.Size()],
		"layer.json": []byte("{}"),
	} {
		if err := errors.Join(os.Remove(files.Path(name)), os.WriteFile(files.Path(name), b, 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	n = snapshottest.New(t, root)
	t.Cleanup(func() { _ = n.TearDown() })
	if _, err := n.Prepare(t.Context(), "mend", "", img.Labels(0, "mended")); !errdefs.IsAlreadyExists(err) {
		t.Fatal(err)
	}
	img.ReadsRight(t, n)
}

// TestStateOfAnotherIndex finds a layer whose directory has lost its state, as when a
// daemon died while it repaired it, and another index in the store: the mounted layer
// has all of one index.
func TestStateOfAnotherIndex(t *testing.T) {
	snapshottest.NeedFanotify(t)
	root := t.TempDir()
	n := snapshottest.New(t, root)
	img := snapshottest.LazyImage(t, n)
	files := look(t, n, img.Layers[0]).Files()
	if err := n.TearDown(); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(files.Path("layer.json")); err != nil {
		t.Fatal(err)
	}
	other := spans.BuildOptions{SpanSize: 8 << 10}
	if _, _, err := index.Create(t.Context(), bytes.NewReader(img.Layers[0]), n.Store.Path(files.Layer), other, index.Expect{}); err != nil {
		t.Fatal(err)
	}
	n = snapshottest.New(t, root)
	t.Cleanup(func() { _ = n.TearDown() })
	img.ReadsRight(t, n)
	if now := look(t, n, img.Layers[0]).Files(); now.SpanSize != 8<<10 || now.Dir() != files.Dir() {
		t.Errorf("%+v", now)
	}
}
