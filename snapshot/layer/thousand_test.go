package layer_test

import (
	"bytes"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/lacuna-snapshotter/lacuna/erofs"
	"github.com/lacuna-snapshotter/lacuna/fetcher/layertest"
	"github.com/lacuna-snapshotter/lacuna/snapshot/layer"
	"github.com/lacuna-snapshotter/lacuna/snapshot/snapshottest"
)

// TestThousandLayers starts over 1,000 layers, first with all of them to be
// mounted, as after a reboot, then over their mounts, and says how long each
// took.
func TestThousandLayers(t *testing.T) {
	snapshottest.NeedFanotify(t)
	root := t.TempDir()
	const layers = 1000
	tree, err := erofs.ReadTar(t.Context(), bytes.NewReader(layertest.Tar(t, 30, 1)), erofs.Options{})
	if err != nil {
		t.Fatal(err)
	}
	bootstrap, err := tree.Encode()
	if err != nil {
		t.Fatal(err)
	}
	for i := range layers {
		d := digest.FromString(fmt.Sprint(i))
		if err := layer.WriteLayer(root, d, "registry.example/app:1", bootstrap, tree.BlobSize); err != nil {
			t.Fatal(err)
		}
	}
	mountIDs := func() map[string]string {
		b, err := os.ReadFile("/proc/self/mountinfo")
		if err != nil {
			t.Fatal(err)
		}
		ids := map[string]string{}
		for line := range strings.Lines(string(b)) {
			if f := strings.Fields(line); len(f) > 4 && strings.HasPrefix(f[4], root+"/snapshots/m/") {
				ids[f[4]] = f[0]
			}
		}
		return ids
	}

	began := time.Now()
	n := snapshottest.New(t, root)
	cold := time.Since(began)
	before := mountIDs()
	if len(before) != layers {
		t.Fatalf("%d mounts", len(before))
	}
	group := snapshottest.Hold(t, n)
	if err := n.Stop(); err != nil {
		t.Fatal(err)
	}
	began = time.Now()
	if n, err = snapshottest.Start(t.Context(), root, group, snapshottest.Log(t)); err != nil {
		t.Fatal(err)
	}
	warm := time.Since(began)
	t.Cleanup(func() {
		if err := n.TearDown(); err != nil {
			t.Error(err)
		}
	})
	after := mountIDs()
	for target, id := range before {
		if after[target] != id {
			t.Fatalf("%s was mounted again", target)
		}
	}
	t.Logf("start with %d layers: %s with all to be mounted, %s over their mounts", layers, cold.Round(time.Millisecond), warm.Round(time.Millisecond))
}
