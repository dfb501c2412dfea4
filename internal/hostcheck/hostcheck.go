// Package hostcheck checks what a test requires of the machine: root, a tool, a kernel
// feature. Where that is missing the test is skipped visibly; in CI, which must have all
// of it, the test fails instead.
package hostcheck

import (
	"errors"
	"os"
	"os/exec"
	"testing"

	"github.com/lacuna-snapshotter/lacuna/internal/feature"
)

// Root requires root.
func Root(t testing.TB) {
	t.Helper()
	unit(t, "root")
	if os.Geteuid() != 0 {
		Missing(t, "root")
	}
}

// Tool requires a program and returns its path.
func Tool(t testing.TB, name string) string {
	t.Helper()
	unit(t, name)
	path, err := exec.LookPath(name)
	if err != nil {
		Missing(t, name)
	}
	return path
}

// Feature requires a feature of the kernel. The test is skipped only on a kernel of a
// release that does not have it; where the kernel should have it, the test fails, so
// that a wrong probe cannot disable tests.
func Feature(t testing.TB, f *feature.Feature) {
	t.Helper()
	err := f.Check()
	if err == nil {
		return
	}
	if may, why := maySkip(f, err); !may {
		t.Fatalf("%v; %s", err, why)
	}
	Missing(t, err.Error())
}

// maySkip reports whether a test may be skipped after a feature's error, and why not.
func maySkip(f *feature.Feature, err error) (may bool, why string) {
	if !errors.Is(err, feature.ErrMissing) {
		return false, "the probe cannot tell"
	}
	release, err := feature.Release()
	if err != nil {
		return false, err.Error()
	}
	kernel, err := feature.ParseVersion(release)
	if err != nil {
		return false, err.Error()
	}
	return !f.Expected(kernel), "this kernel, " + release + ", should have it"
}

// Missing ends a test that requires something that is missing.
func Missing(t testing.TB, what string) {
	t.Helper()
	unit(t, what)
	if os.Getenv("CI") != "" {
		t.Fatalf("this test needs %s, and CI must have it", what)
	}
	t.Skipf("needs %s", what)
}

// unit skips a test that needs anything when go test -short asks for unit tests, as make
// unit does.
func unit(t testing.TB, what string) {
	t.Helper()
	if testing.Short() {
		t.Skipf("no unit test: needs %s", what)
	}
}
