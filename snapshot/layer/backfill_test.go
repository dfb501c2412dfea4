package layer_test

import (
	"testing"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/snapshotters"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/lacuna-snapshotter/lacuna/fetcher/index"
	"github.com/lacuna-snapshotter/lacuna/fetcher/layertest"
	"github.com/lacuna-snapshotter/lacuna/fetcher/registry/registrytest"
	"github.com/lacuna-snapshotter/lacuna/snapshot/layer"
	"github.com/lacuna-snapshotter/lacuna/snapshot/snapshottest"
)

// TestBackfillBesideDeadRegistry has many layers of a registry that answers 401 to
// every read, and one layer of another registry, which is completed.
func TestBackfillBesideDeadRegistry(t *testing.T) {
	snapshottest.NeedFanotify(t)
	n := snapshottest.New(t, t.TempDir())
	t.Cleanup(func() { _ = n.TearDown() })
	dead, well := &snapshottest.Image{Reg: registrytest.New(t)}, snapshottest.NewImage(t, 1)
	for seed := range uint64(20) {
		l := layertest.Gzip(t, layertest.Tar(t, 5, 100+seed))
		dead.Layers = append(dead.Layers, l)
		dead.Reg.AddBlob(l)
	}
	for i := range dead.Layers {
		dead.Index(t, n, i)
		if _, err := n.Prepare(t.Context(), "k", "", dead.Labels(i, digest.FromBytes(dead.Layers[i]).String())); !errdefs.IsAlreadyExists(err) {
			t.Fatal(err)
		}
	}
	for range 10000 {
		dead.Reg.Fail(registrytest.Status(401, ""))
	}
	well.Index(t, n, 0)
	if _, err := n.Prepare(t.Context(), "k", "", well.Labels(0, "well")); !errdefs.IsAlreadyExists(err) {
		t.Fatal(err)
	}
	n.Layers.Backfill.Enabled = true
	n.Layers.StartBackfill()
	snapshottest.Eventually(t, "the layer of the registry that answers is complete", func() bool {
		return look(t, n, well.Layers[0]).Blob().Complete()
	})
}

// TestPredictionOfSecondImage pulls an image whose only layer is on the node
// already, of an image without a prediction.
func TestPredictionOfSecondImage(t *testing.T) {
	snapshottest.NeedFanotify(t)
	n := snapshottest.New(t, t.TempDir())
	t.Cleanup(func() { _ = n.TearDown() })
	img := snapshottest.LazyImage(t, n)
	layer := digest.FromBytes(img.Layers[0])
	manifest := digest.FromString("the second image's")
	if err := n.Store.PutPrediction(manifest, predictionOf(layer)); err != nil {
		t.Fatal(err)
	}
	labels := snapshots.WithLabels(map[string]string{
		snapshots.LabelSnapshotRef:             "chain0",
		snapshotters.TargetRefLabel:            img.Reg.Ref("second"),
		snapshotters.TargetManifestDigestLabel: manifest.String(),
		snapshotters.TargetLayerDigestLabel:    layer.String(),
	})
	before := look(t, n, img.Layers[0]).Blob().Filled()
	if _, err := n.Prepare(t.Context(), "second/extract", "", labels); !errdefs.IsAlreadyExists(err) {
		t.Fatal(err)
	}
	snapshottest.Eventually(t, "what the second image's start reads is filled", func() bool {
		return look(t, n, img.Layers[0]).Blob().Filled() > before
	})
}

func predictionOf(layer digest.Digest) *index.Prediction {
	return &index.Prediction{Layers: []digest.Digest{layer}, Spans: [][3]int64{{0, 3, 2}}}
}

// TestFillAndEvict fills all layers at once, and evicts those that no container uses.
func TestFillAndEvict(t *testing.T) {
	snapshottest.NeedFanotify(t)
	n := snapshottest.New(t, t.TempDir())
	t.Cleanup(func() { _ = n.TearDown() })
	img := snapshottest.NewImage(t, 2)
	for l := range img.Layers {
		img.Index(t, n, l)
	}
	snapshottest.PrepareAll(t, t.Context(), n, img)
	if err := n.Layers.Fill(t.Context()); err != nil {
		t.Fatal(err)
	}
	if count, _ := states(n); count[layer.Complete] != 2 {
		t.Errorf("%v, want two complete", count)
	}
	if _, err := n.View(t.Context(), "view", "chain0"); err != nil {
		t.Fatal(err)
	}
	if err := n.Layers.Evict(t.Context()); err != nil {
		t.Fatal(err)
	}
	if count, _ := states(n); count[layer.Complete] != 1 || count[layer.Evicted] != 1 {
		t.Errorf("%v, want the layer of the view complete and the other evicted", count)
	}
	if n.Layers.Over() {
		t.Error("there is no limit, and the cache is over it")
	}
	for range 1000 {
		img.Reg.Fail(registrytest.Status(401, ""))
	}
	if _, err := n.View(t.Context(), "again", "chain1"); err != nil {
		t.Fatal(err)
	}
	if err := n.Layers.Fill(t.Context()); err == nil {
		t.Error("filled from a registry that refuses")
	}
}
