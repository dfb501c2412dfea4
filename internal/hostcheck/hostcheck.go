// Package hostcheck lets a test say what it needs of the machine: root, a tool,
// a kernel feature. Where that is missing the test is skipped visibly; in CI,
// which promises all of it, the test fails instead.
package hostcheck

import (
	"os"
	"os/exec"
	"testing"
)

// Root needs the test to run as root.
func Root(t testing.TB) {
	t.Helper()
	unit(t, "root")
	if os.Geteuid() != 0 {
		Missing(t, "root")
	}
}

// Tool needs a program and returns its path.
func Tool(t testing.TB, name string) string {
	t.Helper()
	unit(t, name)
	path, err := exec.LookPath(name)
	if err != nil {
		Missing(t, name)
	}
	return path
}

// Missing ends the test for want of what.
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
