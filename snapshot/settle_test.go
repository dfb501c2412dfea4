package snapshot

import (
	"testing"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/snapshotters"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/lacuna-snapshotter/lacuna/fetcher/index"
	"github.com/lacuna-snapshotter/lacuna/fetcher/layertest"
	"github.com/lacuna-snapshotter/lacuna/fetcher/registry/registrytest"
)

// TestSettleBesideDeadRegistry has many layers of a registry that answers 401 to
// every read, and one layer of another registry, which is completed.
func TestSettleBesideDeadRegistry(t *testing.T) {
	needFanotify(t)
	n := startForTest(t, t.TempDir())
	t.Cleanup(func() { _ = n.tearDown() })
	dead, well := &image{reg: registrytest.New(t)}, newImage(t, 1)
	for seed := range uint64(20) {
		l := layertest.Gzip(t, layertest.Tar(t, 5, 100+seed))
		dead.layers = append(dead.layers, l)
		dead.reg.AddBlob(l)
	}
	for i := range dead.layers {
		dead.index(t, n, i)
		if _, err := n.Prepare(t.Context(), "k", "", dead.labels(i, digest.FromBytes(dead.layers[i]).String())); !errdefs.IsAlreadyExists(err) {
			t.Fatal(err)
		}
	}
	for range 10000 {
		dead.reg.Fail(registrytest.Status(401, ""))
	}
	well.index(t, n, 0)
	if _, err := n.Prepare(t.Context(), "k", "", well.labels(0, "well")); !errdefs.IsAlreadyExists(err) {
		t.Fatal(err)
	}
	n.layers.Settle.Enabled = true
	n.layers.work.Go(n.layers.settle)
	eventually(t, "the layer of the registry that answers is complete", func() bool {
		return n.layer(t, well.layers[0]).serving.blob.Complete()
	})
}

// TestPredictionOfSecondImage pulls an image whose only layer is on the node
// already, of an image without a prediction.
func TestPredictionOfSecondImage(t *testing.T) {
	needFanotify(t)
	n := startForTest(t, t.TempDir())
	t.Cleanup(func() { _ = n.tearDown() })
	img := lazyImage(t, n)
	layer := digest.FromBytes(img.layers[0])
	manifest := digest.FromString("the second image's")
	if err := n.store.PutPrediction(manifest, predictionOf(layer)); err != nil {
		t.Fatal(err)
	}
	labels := snapshots.WithLabels(map[string]string{
		snapshots.LabelSnapshotRef:             "chain0",
		snapshotters.TargetRefLabel:            img.reg.Ref("second"),
		snapshotters.TargetManifestDigestLabel: manifest.String(),
		snapshotters.TargetLayerDigestLabel:    layer.String(),
	})
	before := n.layer(t, img.layers[0]).serving.blob.Filled()
	if _, err := n.Prepare(t.Context(), "second/extract", "", labels); !errdefs.IsAlreadyExists(err) {
		t.Fatal(err)
	}
	eventually(t, "what the second image's start reads is filled", func() bool {
		return n.layer(t, img.layers[0]).serving.blob.Filled() > before
	})
}

func predictionOf(layer digest.Digest) *index.Prediction {
	return &index.Prediction{Layers: []digest.Digest{layer}, Spans: [][3]int64{{0, 3, 2}}}
}
