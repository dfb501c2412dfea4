package layer_test

import (
	"bytes"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/lacuna-snapshotter/lacuna/fetcher/registry/registrytest"
	"github.com/lacuna-snapshotter/lacuna/snapshot/snapshottest"
)

// TestReadersGetEIO has the registry answer with wrong bytes or not at all.
func TestReadersGetEIO(t *testing.T) {
	snapshottest.NeedFanotify(t)
	for name, fault := range map[string]registrytest.Fault{
		"wrong bytes":   registrytest.Flip,
		"another range": registrytest.OtherRange,
		"401":           registrytest.Status(401, ""),
		"404":           registrytest.Status(404, ""),
		"503":           registrytest.Status(503, ""),
	} {
		t.Run(name, func(t *testing.T) {
			n := snapshottest.New(t, t.TempDir())
			t.Cleanup(func() { _ = n.TearDown() })
			img := snapshottest.LazyImage(t, n)
			target := n.Mountpoint(t, img.Layers[0])
			for range 500 {
				img.Reg.Fail(fault)
			}
			// Bytes that were verified before the fault are right; most reads fail,
			// each after the timeout of a fill.
			failed := 0
			for _, file := range strings.Fields(string(snapshottest.MustRun(t, "find", target, "-type", "f"))) {
				rel, _ := filepath.Rel(target, file)
				got, err := exec.Command("cat", file).Output()
				if err != nil {
					if failed++; failed > 3 {
						break
					}
				}
				if want := img.File(t, rel); !bytes.HasPrefix(want, got) || err == nil && len(got) != len(want) {
					t.Errorf("%s: wrong bytes", rel)
				}
			}
			if failed == 0 {
				t.Error("no read failed")
			}
			img.Reg.ClearFaults()
			img.ReadsRight(t, n) // after the faults
		})
	}
}
