package snapshot_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/containerd/containerd/v2/core/mount"
	"golang.org/x/sys/unix"

	"github.com/lacuna-snapshotter/lacuna/snapshot/snapshottest"
)

// TestPrivate has another user of the host try to reach an image's files, which may have
// set-user-ID bits.
func TestPrivate(t *testing.T) {
	snapshottest.NeedFanotify(t)
	root := t.TempDir()
	for dir := root; dir != "/"; dir = filepath.Dir(dir) { // every user may reach the root directory
		if dir != os.TempDir() && len(dir) > len(os.TempDir()) {
			if err := os.Chmod(dir, 0o755); err != nil {
				t.Fatal(err)
			}
		}
	}
	n := snapshottest.New(t, root)
	t.Cleanup(func() { _ = n.TearDown() })
	img := snapshottest.LazyImage(t, n)
	target := n.Mountpoint(t, img.Layers[0])
	if out, err := exec.Command("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "ls", target).CombinedOutput(); err == nil {
		t.Errorf("another user sees %s", out)
	}
	var st unix.Statfs_t
	if err := unix.Statfs(target, &st); err != nil || st.Flags&unix.ST_NOSUID == 0 || st.Flags&unix.ST_NODEV == 0 {
		t.Errorf("mount flags %x, %v", st.Flags, err)
	}
	for _, prepare := range []func(string) ([]mount.Mount, error){
		func(key string) ([]mount.Mount, error) { return n.Prepare(t.Context(), key, "chain0") },
		func(key string) ([]mount.Mount, error) { return n.View(t.Context(), key, "chain0") },
	} {
		mounts, err := prepare(fmt.Sprintf("%p", prepare))
		if err != nil {
			t.Fatal(err)
		}
		if err := unix.Statfs(snapshottest.Mounted(t, mounts), &st); err != nil || st.Flags&(unix.ST_NOSUID|unix.ST_NODEV) != 0 {
			t.Errorf("a container's mount has flags %x, %v", st.Flags, err)
		}
	}
}
