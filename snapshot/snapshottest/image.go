package snapshottest

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"os/exec"
	"testing"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/snapshotters"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/lacuna-snapshotter/lacuna/fetcher/index"
	"github.com/lacuna-snapshotter/lacuna/fetcher/layertest"
	"github.com/lacuna-snapshotter/lacuna/fetcher/registry/registrytest"
	"github.com/lacuna-snapshotter/lacuna/fetcher/spans"
	"github.com/lacuna-snapshotter/lacuna/internal/hostcheck"
)

// Image is a registry with layers.
type Image struct {
	Reg    *registrytest.Registry
	Layers [][]byte // packed
	Tars   [][]byte
}

// NewImage makes an image of n layers of 30 files each.
func NewImage(t *testing.T, n int) *Image {
	i := &Image{Reg: registrytest.New(t)}
	for seed := range uint64(n) {
		tar := layertest.Tar(t, 30, seed+1)
		i.Tars = append(i.Tars, tar)
		i.Layers = append(i.Layers, layertest.Gzip(t, tar))
		i.Reg.AddBlob(i.Layers[seed])
	}
	return i
}

// LazyImage is an image of one layer, which a node has prepared lazily.
func LazyImage(t *testing.T, n *Node) *Image {
	t.Helper()
	img := NewImage(t, 1)
	img.Index(t, n, 0)
	PrepareAll(t, t.Context(), n, img)
	return img
}

// Index puts a layer's index into a node's store, as lacunactl index create does.
func (i *Image) Index(t *testing.T, n *Node, layer int) {
	t.Helper()
	d := digest.FromBytes(i.Layers[layer])
	if _, _, err := index.Create(t.Context(), bytes.NewReader(i.Layers[layer]), n.Store.Path(d), spans.BuildOptions{}, index.Expect{}); err != nil {
		t.Fatal(err)
	}
}

// Labels are what containerd gives to the Prepare of a layer.
func (i *Image) Labels(layer int, name string) snapshots.Opt {
	return snapshots.WithLabels(map[string]string{
		snapshots.LabelSnapshotRef:          name,
		snapshotters.TargetRefLabel:         i.Reg.Ref("latest"),
		snapshotters.TargetLayerDigestLabel: digest.FromBytes(i.Layers[layer]).String(),
	})
}

// PrepareAll prepares all layers lazily, one on the other, as chain0, chain1 and so on.
func PrepareAll(t *testing.T, ctx context.Context, n *Node, i *Image) {
	t.Helper()
	parent := ""
	for layer := range i.Layers {
		name := "chain" + string(rune('0'+layer))
		_, err := n.Prepare(ctx, "extract-"+name, parent, i.Labels(layer, name))
		if !errdefs.IsAlreadyExists(err) {
			t.Fatalf("layer %d: %v", layer, err)
		}
		info, err := n.Stat(ctx, name)
		if err != nil || info.Kind != snapshots.KindCommitted || info.Parent != parent || info.Labels[snapshots.LabelSnapshotRef] != name {
			t.Fatalf("%+v, %v", info, err)
		}
		parent = name
	}
}

// Unpacked hashes what tar(1) makes of the layers.
func (i *Image) Unpacked(t *testing.T) string {
	dir := t.TempDir()
	for _, layer := range i.Tars {
		cmd := exec.CommandContext(t.Context(), hostcheck.Tool(t, "tar"), "-x", "-C", dir)
		cmd.Stdin = bytes.NewReader(layer)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v %s", err, out)
		}
	}
	return Hashes(t, dir)
}

// ReadsRight has a process read all of the image's only layer.
func (i *Image) ReadsRight(t *testing.T, n *Node) {
	t.Helper()
	target := n.Mountpoint(t, i.Layers[0])
	got, err := Tree(t, []mount.Mount{{Type: "bind", Source: target, Options: []string{"ro", "rbind"}}})
	if err != nil || got != i.Unpacked(t) {
		t.Errorf("the tree differs: %v", err)
	}
}

// File is a file's content in the only layer.
func (i *Image) File(t *testing.T, name string) []byte {
	t.Helper()
	r := tar.NewReader(bytes.NewReader(i.Tars[0]))
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			t.Fatalf("the layer has no %s", name)
		} else if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if h.Name == name {
			b, err := io.ReadAll(r)
			if err != nil {
				t.Fatal(err)
			}
			return b
		}
	}
}
