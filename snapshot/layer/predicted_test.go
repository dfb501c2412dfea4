package layer_test

import (
	"fmt"
	"runtime"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/snapshotters"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/lacuna-snapshotter/lacuna/fetcher/registry/registrytest"
	"github.com/lacuna-snapshotter/lacuna/snapshot/snapshottest"
)

// TestPreparesShareAPrediction prepares one layer many times while the registry does
// not answer: one prediction is being filled meanwhile.
func TestPreparesShareAPrediction(t *testing.T) {
	snapshottest.NeedFanotify(t)
	n := snapshottest.New(t, t.TempDir())
	t.Cleanup(func() { _ = n.TearDown() })
	img := snapshottest.LazyImage(t, n)
	layer := digest.FromBytes(img.Layers[0])
	manifest := digest.FromString("the image's")
	if err := n.Store.PutPrediction(manifest, predictionOf(layer)); err != nil {
		t.Fatal(err)
	}
	gate := make(chan struct{})
	for range 100 {
		img.Reg.Fail(registrytest.Until(gate))
	}
	for i := range 20 {
		labels := snapshots.WithLabels(map[string]string{
			snapshots.LabelSnapshotRef:             "chain0",
			snapshotters.TargetRefLabel:            img.Reg.Ref("latest"),
			snapshotters.TargetManifestDigestLabel: manifest.String(),
			snapshotters.TargetLayerDigestLabel:    layer.String(),
		})
		if _, err := n.Prepare(t.Context(), fmt.Sprint("extract", i), "", labels); !errdefs.IsAlreadyExists(err) {
			t.Fatal(err)
		}
	}
	stacks := make([]byte, 4<<20)
	stacks = stacks[:runtime.Stack(stacks, true)]
	if many := strings.Count(string(stacks), ".fillRuns(0x"); many > 1 {
		t.Errorf("%d goroutines fill one prediction", many)
	}
	close(gate)
	snapshottest.Eventually(t, "the prediction is filled", func() bool {
		return look(t, n, img.Layers[0]).Blob().Filled() > 0
	})
}
