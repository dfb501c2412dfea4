package snapshot

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/lacuna-snapshotter/lacuna/fetcher/layertest"
	"github.com/lacuna-snapshotter/lacuna/fetcher/registry/registrytest"
)

// mounted mounts a snapshot's mounts, as containerd does for a container.
func mounted(t *testing.T, mounts []mount.Mount) (dir string) {
	t.Helper()
	dir = t.TempDir()
	if err := mount.All(mounts, dir); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = mount.UnmountAll(dir, unix.MNT_DETACH) })
	return dir
}

// hashes hashes all files below a directory, from another process.
func hashes(t *testing.T, dir string) string {
	t.Helper()
	out, err := exec.Command("sh", "-c", "cd "+dir+" && find . -type f -print0 | sort -z | xargs -0 sha256sum").Output()
	if err != nil {
		t.Errorf("reading %s: %v", dir, err)
	}
	return string(out)
}

// TestSecondNamespace pulls, in another namespace of containerd, an image that one
// has: the name is there, and whatever comes after must not stumble over it.
func TestSecondNamespace(t *testing.T) {
	needFanotify(t)
	n := startForTest(t, t.TempDir())
	t.Cleanup(func() { _ = n.tearDown() })
	img := lazyImage(t, n)
	if _, err := n.Prepare(t.Context(), "second/1/extract", "", img.labels(0, "chain0")); !errdefs.IsAlreadyExists(err) {
		t.Fatal(err)
	}
	for i := range 3 {
		if _, err := n.Prepare(t.Context(), fmt.Sprint("container", i), "chain0"); err != nil {
			t.Error(err)
		}
	}
}

// TestOtherParent has two namespaces whose lower layers are different snapshots,
// each unpacked by itself, below the same chain ID.
func TestOtherParent(t *testing.T) {
	needFanotify(t)
	ctx := t.Context()
	n := startForTest(t, t.TempDir())
	t.Cleanup(func() { _ = n.tearDown() })
	img := newImage(t, 1)
	img.index(t, n, 0)
	pull := func(ns string) {
		t.Helper()
		if _, err := n.Prepare(ctx, ns+"/extract1", ns+"/chain0", img.labels(0, "chain1")); !errdefs.IsAlreadyExists(err) {
			t.Fatal(err)
		}
		found := 0
		err := n.Walk(ctx, func(_ context.Context, info snapshots.Info) error {
			found++
			return nil
		}, `labels."containerd.io/snapshot.ref"==chain1,parent=="`+ns+`/chain0"`)
		if err != nil || found != 1 {
			t.Errorf("%s: %d snapshots for containerd to find, %v", ns, found, err)
		}
	}
	for _, ns := range []string{"first", "second"} {
		if _, err := n.Prepare(ctx, ns+"/extract", ""); err != nil {
			t.Fatal(err)
		}
		if err := n.Commit(ctx, ns+"/chain0", ns+"/extract"); err != nil {
			t.Fatal(err)
		}
		pull(ns)
		pull(ns) // again
	}
	if err := n.Remove(ctx, "chain1"); err != nil { // the first's
		t.Fatal(err)
	}
	pull("second") // the plain name is free, and the second has one of another name
	pull("first")
}

// TestRolledBackTransaction finds the directory of a snapshot whose transaction
// did not come to its end: bbolt gives its ID again.
func TestRolledBackTransaction(t *testing.T) {
	needFanotify(t)
	root := t.TempDir()
	n := startForTest(t, root)
	t.Cleanup(func() { _ = n.tearDown() })
	for id := range 10 {
		if err := os.MkdirAll(filepath.Join(root, snapshotsDir, fmt.Sprint(id), "fs", "of another"), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	mounts, err := n.Prepare(t.Context(), "container", "")
	if err != nil {
		t.Fatal(err)
	}
	if left, err := os.ReadDir(mounts[0].Source); err != nil || len(left) > 0 {
		t.Errorf("a new snapshot has %v, %v", left, err)
	}
}

// TestPullDuringCleanup pulls an image again and starts a container while Cleanup
// is at work on it, many times.
func TestPullDuringCleanup(t *testing.T) {
	needFanotify(t)
	ctx := t.Context()
	n := startForTest(t, t.TempDir())
	t.Cleanup(func() { _ = n.tearDown() })
	img := lazyImage(t, n)
	want := img.unpacked(t)
	for round := range 40 {
		if err := n.Remove(ctx, "chain0"); err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		for range 2 {
			wg.Go(func() {
				if err := n.Cleanup(ctx); err != nil {
					t.Error(err)
				}
			})
		}
		time.Sleep(time.Duration(round) * 100 * time.Microsecond)
		if _, err := n.Prepare(ctx, "k", "", img.labels(0, "chain0")); !errdefs.IsAlreadyExists(err) {
			t.Fatal(err)
		}
		mounts, err := n.Prepare(ctx, "container", "chain0")
		if err != nil {
			t.Fatal(err)
		}
		dir := mounted(t, mounts)
		wg.Wait()
		if hashes(t, dir) != want {
			t.Fatal("the container's tree differs")
		}
		if _, err := n.Mounts(ctx, "container"); err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(mount.UnmountAll(dir, 0), n.Remove(ctx, "container")); err != nil {
			t.Fatal(err)
		}
	}
}

// TestOverlayOutlivesSnapshot removes a container's snapshot, and what it stands
// on, while its overlay is mounted: no hole may read as zeros, and when the
// overlay is gone nothing is left.
func TestOverlayOutlivesSnapshot(t *testing.T) {
	needFanotify(t)
	ctx := t.Context()
	for name, take := range map[string]func(t *testing.T, n *node) error{
		"evict": func(t *testing.T, n *node) error {
			n.layers.Cache.MaxBytes = 1
			for _, d := range n.layers.all() {
				l, _ := n.layers.snapshotOf(d)
				if err := l.serving.blob.Fill(ctx, 0, 1); err != nil {
					t.Fatal(err)
				}
			}
			return n.layers.evictOnce()
		},
		"remove": func(_ *testing.T, n *node) error {
			return errors.Join(n.Remove(ctx, "chain0"), n.Cleanup(ctx))
		},
	} {
		t.Run(name, func(t *testing.T) {
			root := t.TempDir()
			n := startForTest(t, root)
			t.Cleanup(func() { _ = n.tearDown() })
			img := lazyImage(t, n)
			if _, err := n.Prepare(ctx, "container", "chain0"); err != nil {
				t.Fatal(err)
			}
			// Without an upper directory, which goes with its snapshot.
			dir := mounted(t, []mount.Mount{{Type: "overlay", Source: "overlay", Options: []string{"lowerdir=" + n.mountpoint(t, img.layers[0]) + ":" + t.TempDir()}}})
			if err := n.Remove(ctx, "container"); err != nil {
				t.Fatal(err)
			}
			if err := take(t, n); err != nil {
				t.Fatal(err)
			}
			if s := n.layer(t, img.layers[0]).state; s != Leaving {
				t.Errorf("the layer is %s", s)
			}
			if !n.layers.Served() {
				t.Error("keepers would be ended while an overlay has holes")
			}
			if got, want := hashes(t, dir), img.unpacked(t); got != want {
				t.Errorf("the tree below the overlay differs:\n%s\nwant\n%s", got, want)
			}
			// It comes back while the overlay lives.
			if name == "remove" {
				if _, err := n.Prepare(ctx, "k", "", img.labels(0, "chain0")); !errdefs.IsAlreadyExists(err) {
					t.Fatal(err)
				}
			}
			view, err := n.View(ctx, "view", "chain0")
			if err != nil {
				t.Fatal(err)
			}
			if got, err := tree(t, view); err != nil || got != img.unpacked(t) {
				t.Errorf("the tree differs: %v", err)
			}
			if err := errors.Join(n.Remove(ctx, "view"), take(t, n), mount.UnmountAll(dir, 0)); err != nil {
				t.Fatal(err)
			}
			eventually(t, "the layer goes with its overlay", func() bool {
				count, _ := states(n)
				return count[Leaving]+count[Filling]+count[Complete] == 0
			})
		})
	}
}

// TestSameDigits has two layers whose digests begin alike: each has a mountpoint
// of its own.
func TestSameDigits(t *testing.T) {
	needFanotify(t)
	root := t.TempDir()
	n := startForTest(t, root)
	img := newImage(t, 1)
	img.index(t, n, 0)
	d := digest.FromBytes(img.layers[0])
	n.layers.mountpoints[d.Encoded()[:12]] = digest.FromString("another")
	if _, err := n.Prepare(t.Context(), "k", "", img.labels(0, "chain0")); !errdefs.IsAlreadyExists(err) {
		t.Fatal(err)
	}
	first := n.mountpoint(t, img.layers[0])
	if filepath.Base(first) != d.Encoded()[:13] {
		t.Errorf("mounted at %s", first)
	}
	if err := n.tearDown(); err != nil {
		t.Fatal(err)
	}
	n = startForTest(t, root) // it is remembered
	t.Cleanup(func() { _ = n.tearDown() })
	if again := n.mountpoint(t, img.layers[0]); again != first {
		t.Errorf("mounted at %s, was at %s", again, first)
	}
	img.readsRight(t, n)
}

// TestQuarantinedIsHeld stops a daemon that could not serve a layer of an earlier
// one, on which a container runs: what holds its readers must live on.
func TestQuarantinedIsHeld(t *testing.T) {
	needFanotify(t)
	root := t.TempDir()
	n := startForTest(t, root)
	img := lazyImage(t, n)
	mounts, err := n.Prepare(t.Context(), "container", "chain0")
	if err != nil {
		t.Fatal(err)
	}
	dir := mounted(t, mounts)
	f := n.layer(t, img.layers[0]).files
	group := hold(t, n)
	if err := errors.Join(n.stop(), os.WriteFile(f.path("layer.json"), []byte("{}"), 0o600), n.store.Remove(f.Layer)); err != nil {
		t.Fatal(err)
	}
	if n, err = start(t.Context(), root, group, testLog(t)); err != nil {
		t.Fatal(err)
	}
	if n.layer(t, img.layers[0]).state != Quarantined || !n.layers.Served() {
		t.Errorf("%s, served %v: the keepers would be ended", n.layer(t, img.layers[0]).state, n.layers.Served())
	}
	// Its holes are errors.
	if out, err := exec.Command("sh", "-c", "cat $(find "+dir+" -type f -size +8k)").Output(); err == nil {
		t.Errorf("read %d bytes of a layer that nothing serves", len(out))
	}
	if err := mount.UnmountAll(dir, 0); err != nil {
		t.Fatal(err)
	}
	if n.layers.Served() {
		t.Error("nobody can reach it any more")
	}
	if err := n.tearDown(); err != nil {
		t.Error(err)
	}
}

// TestDeathInRemoval takes from a layer's directory, one file after the other in
// any order, what a daemon that died while it deleted them had deleted.
func TestDeathInRemoval(t *testing.T) {
	needFanotify(t)
	for _, gone := range []string{"blob", "blob.spans", "blob.durable", "bootstrap", "layer.json", "*.index"} {
		t.Run(gone, func(t *testing.T) {
			root := t.TempDir()
			n := startForTest(t, root)
			img := lazyImage(t, n)
			layer := n.layer(t, img.layers[0])
			blob, dir := layer.serving.blob, layer.files.dir
			if err := blob.Fill(t.Context(), 0, blob.Size()); err != nil {
				t.Fatal(err)
			}
			if err := errors.Join(blob.Sync(), n.tearDown()); err != nil {
				t.Fatal(err)
			}
			paths, err := filepath.Glob(filepath.Join(dir, gone))
			if err != nil || len(paths) == 0 {
				t.Fatal(paths, err)
			}
			if err := os.Remove(paths[0]); err != nil {
				t.Fatal(err)
			}
			n = startForTest(t, root)
			t.Cleanup(func() { _ = n.tearDown() })
			img.readsRight(t, n)
		})
	}
}

// TestPrivate has another user of the host look for an image's files, which may
// have set-user-ID bits.
func TestPrivate(t *testing.T) {
	needFanotify(t)
	root := t.TempDir()
	for dir := root; dir != "/"; dir = filepath.Dir(dir) { // a way to the root that everybody may take
		if dir != os.TempDir() && len(dir) > len(os.TempDir()) {
			if err := os.Chmod(dir, 0o755); err != nil {
				t.Fatal(err)
			}
		}
	}
	n := startForTest(t, root)
	t.Cleanup(func() { _ = n.tearDown() })
	img := lazyImage(t, n)
	target := n.mountpoint(t, img.layers[0])
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
		if err := unix.Statfs(mounted(t, mounts), &st); err != nil || st.Flags&(unix.ST_NOSUID|unix.ST_NODEV) != 0 {
			t.Errorf("a container's mount has flags %x, %v", st.Flags, err)
		}
	}
}

// TestLabels has a client, or an image's annotations, give labels of ours.
func TestLabels(t *testing.T) {
	needFanotify(t)
	ctx := t.Context()
	n := startForTest(t, t.TempDir())
	t.Cleanup(func() { _ = n.tearDown() })
	img := lazyImage(t, n)
	claim := snapshots.WithLabels(map[string]string{labelLayer: digest.FromBytes(img.layers[0]).String()})
	if _, err := n.Prepare(ctx, "k", "", claim); err != nil {
		t.Fatal(err)
	}
	if err := n.Commit(ctx, "mine", "k", claim); err != nil {
		t.Fatal(err)
	}
	if _, err := n.Update(ctx, snapshots.Info{Name: "mine", Labels: map[string]string{labelLayer: "x"}}, "labels."+labelLayer); err != nil {
		t.Fatal(err)
	}
	info, err := n.Stat(ctx, "mine")
	if _, lazy := lazyTarget(info.Labels); err != nil || lazy {
		t.Errorf("%+v, %v", info, err)
	}
	// And one that takes ours away.
	if _, err := n.Update(ctx, snapshots.Info{Name: "chain0", Labels: map[string]string{"a": "b"}}); err != nil {
		t.Fatal(err)
	}
	info, err = n.Stat(ctx, "chain0")
	if _, lazy := lazyTarget(info.Labels); err != nil || !lazy || info.Labels["a"] != "b" {
		t.Errorf("%+v, %v", info, err)
	}
}

// TestManyUsers measures Mounts with 200 containers on 50 layers, idle and while
// layers are evicted. Its figures are for docs/reliability.md.
func TestManyUsers(t *testing.T) {
	needFanotify(t)
	n, err := start(t.Context(), t.TempDir(), nil, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = n.tearDown() })
	img := &image{reg: registrytest.New(t)}
	const layers, containers = 50, 200
	parent := ""
	for i := range layers {
		l := layertest.Gzip(t, layertest.Tar(t, 2, uint64(i+1)))
		img.layers = append(img.layers, l)
		img.reg.AddBlob(l)
		img.index(t, n, i)
		name := fmt.Sprint("chain", i)
		if _, err := n.Prepare(t.Context(), "x"+name, parent, img.labels(i, name)); !errdefs.IsAlreadyExists(err) {
			t.Fatal(err)
		}
		parent = name
	}
	fillAll(t, n)
	for i := range containers {
		if _, err := n.Prepare(t.Context(), fmt.Sprint("c", i), parent); err != nil {
			t.Fatal(err)
		}
	}
	mounts := func() time.Duration {
		began := time.Now()
		if _, err := n.Mounts(t.Context(), "c7"); err != nil {
			t.Fatal(err)
		}
		return time.Since(began)
	}
	idle := mounts()
	n.layers.Cache.MaxBytes = 1
	done := make(chan error, 1)
	go func() { done <- n.layers.evictOnce() }()
	busy := mounts()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	t.Logf("Mounts with %d layers and %d containers: %s, during an eviction %s", layers, containers, idle, busy)
	if count, _ := states(n); count[Complete] != layers {
		t.Errorf("%v", count)
	}
}
