package snapshot

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
)

// TestPreparesShareAPrediction prepares one layer many times while the registry does
// not answer: one prediction is being filled meanwhile.
func TestPreparesShareAPrediction(t *testing.T) {
	needFanotify(t)
	n := startForTest(t, t.TempDir())
	t.Cleanup(func() { _ = n.tearDown() })
	img := lazyImage(t, n)
	layer := digest.FromBytes(img.layers[0])
	manifest := digest.FromString("the image's")
	if err := n.store.PutPrediction(manifest, predictionOf(layer)); err != nil {
		t.Fatal(err)
	}
	gate := make(chan struct{})
	for range 100 {
		img.reg.Fail(registrytest.Until(gate))
	}
	for i := range 20 {
		labels := snapshots.WithLabels(map[string]string{
			snapshots.LabelSnapshotRef:             "chain0",
			snapshotters.TargetRefLabel:            img.reg.Ref("latest"),
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
	eventually(t, "the prediction is filled", func() bool {
		return n.layer(t, img.layers[0]).serving.blob.Filled() > 0
	})
}
