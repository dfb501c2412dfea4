package snapshottest

import (
	"os/exec"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/mount"
	"golang.org/x/sys/unix"
)

// Mounted mounts a snapshot's mounts until the test ends, as containerd does for a
// container.
func Mounted(t *testing.T, mounts []mount.Mount) (dir string) {
	t.Helper()
	dir = t.TempDir()
	if err := mount.All(mounts, dir); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = mount.UnmountAll(dir, unix.MNT_DETACH) })
	return dir
}

// Tree hashes all files below a view of a snapshot, from another process.
func Tree(t *testing.T, mounts []mount.Mount) (string, error) {
	t.Helper()
	dir := t.TempDir()
	if err := mount.All(mounts, dir); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := mount.UnmountAll(dir, 0); err != nil {
			t.Error(err)
		}
	}()
	return hashes(t, dir)
}

// Hashes hashes all files below a directory, from another process.
func Hashes(t *testing.T, dir string) string {
	t.Helper()
	out, err := hashes(t, dir)
	if err != nil {
		t.Errorf("reading %s: %v", dir, err)
	}
	return out
}

func hashes(t *testing.T, dir string) (string, error) {
	out, err := exec.CommandContext(t.Context(), "sh", "-c", "cd "+dir+" && find . -type f -print0 | sort -z | xargs -0 sha256sum").Output()
	return string(out), err
}

// MustRun runs a program and returns its output.
func MustRun(t *testing.T, name string, args ...string) []byte {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), name, args...).Output()
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return out
}

// Eventually waits for what happens in the background.
func Eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for range 600 {
		if holds() {
			return
		}
		time.Sleep(100 * time.Millisecond)
	}
	t.Fatalf("not within a minute: %s", what)
}
