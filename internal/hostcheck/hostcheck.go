// Package hostcheck lets a test say what it needs of the machine: root, a tool, a
// kernel feature. Where that is missing the test is skipped visibly; in CI, which
// promises all of it, the test fails instead.
package hostcheck

import (
	"errors"
	"os"
	"os/exec"
	"testing"

	"github.com/lacuna-snapshotter/lacuna/internal/feature"
)

// Root needs the test to run as root.
func Root(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		Missing(t, "root")
	}
}

// Tool needs a program and returns its path.
func Tool(t testing.TB, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		Missing(t, name)
	}
	return path
}

// Feature needs a feature of the kernel. Only a kernel of another release than those
// that have it is a reason to skip: otherwise a probe that is wrong would switch tests
// off.
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

// maySkip says whether a test may be skipped for want of a feature, and why not.
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

// Missing ends the test for want of what.
func Missing(t testing.TB, what string) {
	t.Helper()
	if os.Getenv("CI") != "" {
		t.Fatalf("this test needs %s, and CI must have it", what)
	}
	t.Skipf("needs %s", what)
}
