//go:build vm

package guest

import (
	"errors"
	"testing"

	"github.com/lacuna-snapshotter/lacuna/internal/feature"
	"github.com/lacuna-snapshotter/lacuna/internal/kernel"
)

// TestKernelFeatures has the probes find what these kernels have, and only that. Both
// are built with the on-demand options, and can restore.
func TestKernelFeatures(t *testing.T) {
	release, err := feature.Release()
	if err != nil {
		t.Fatal(err)
	}
	version, err := feature.ParseVersion(release)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range kernel.Features {
		err := f.Check()
		t.Logf("%s: %v", f.Name, err)
		want := f.Expected(version) || f == kernel.Restore // backported to 6.1
		if want && err != nil || !want && !errors.Is(err, feature.ErrMissing) {
			t.Errorf("%s, on Linux %s: %v", f.Name, release, err)
		}
	}
	if err := kernel.Transports[1].Check(); err != nil {
		t.Errorf("%s: %v", kernel.Transports[1].Name, err)
	}
}
