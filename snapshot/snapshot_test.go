package snapshot

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/testsuite"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/pkg/snapshotters"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/lacuna-snapshotter/lacuna/fetcher/index"
	"github.com/lacuna-snapshotter/lacuna/fetcher/layertest"
	"github.com/lacuna-snapshotter/lacuna/fetcher/registry"
	"github.com/lacuna-snapshotter/lacuna/fetcher/registry/registrytest"
	"github.com/lacuna-snapshotter/lacuna/fetcher/spans"
	"github.com/lacuna-snapshotter/lacuna/internal/hostcheck"
	"github.com/lacuna-snapshotter/lacuna/ondemand"
	"github.com/lacuna-snapshotter/lacuna/ondemand/fanotify"
	"github.com/lacuna-snapshotter/lacuna/ondemand/journal"
)

// node is a snapshotter with all its parts, over one directory.
type node struct {
	*Snapshotter
	store  *index.Store
	server *fanotify.Server
	group  *os.File
}

// start opens a node. The group, where given, is an earlier node's.
func start(ctx context.Context, root string, group *os.File, log *slog.Logger) (*node, error) {
	adopted := group != nil
	if !adopted {
		err := Abandon(root)
		if err == nil {
			group, err = fanotify.NewGroup()
		}
		if err != nil {
			return nil, err
		}
	}
	return startWith(ctx, root, group, adopted, log)
}

// startWith is start with a group that is made, and held, by the caller.
func startWith(ctx context.Context, root string, group *os.File, adopted bool, log *slog.Logger) (*node, error) {
	n := &node{group: group}
	j, err := journal.New(fanotify.Journal)
	if err != nil {
		return nil, err
	}
	if n.server, err = fanotify.Serve(group, j, log); err != nil {
		return nil, err
	}
	client, err := registry.New(registry.Options{PlainHTTP: true, Retry: registry.Retry{Attempts: 2, Base: time.Millisecond}})
	if err != nil {
		return nil, err
	}
	if n.store, err = index.OpenStore(filepath.Join(root, "index")); err != nil {
		return nil, err
	}
	engine, err := ondemand.New(ondemand.Options{Timeout: 2 * time.Second}) // how long a dead registry is borne
	if err != nil {
		return nil, err
	}
	layers, err := OpenLayers(LayersConfig{
		Root: root, Client: client, Store: n.store, Engine: engine, Transport: n.server, Adopted: adopted, Log: log,
	})
	if err != nil {
		return nil, err
	}
	if n.Snapshotter, err = New(ctx, root, layers, log); err != nil {
		return nil, errors.Join(err, n.server.Close())
	}
	n.server.Recover()
	return n, nil
}

// stop is a daemon's graceful end. Mounts stay.
func (n *node) stop() error {
	n.server.Drain()
	return errors.Join(n.Close(), n.server.Close())
}

// tearDown removes the mounts as well.
func (n *node) tearDown() error {
	err := n.stop()
	for _, d := range n.layers.all() {
		if l, ok := n.layers.snapshotOf(d); ok && l.files != nil && l.files.mounted() {
			err = errors.Join(err, unix.Unmount(l.files.target, unix.MNT_DETACH)) // nobody reads: no need of erofs.Unmount
		}
	}
	return err
}

// layer is what a node has of an image's layer.
func (n *node) layer(t *testing.T, packed []byte) Layer {
	t.Helper()
	l, ok := n.layers.snapshotOf(digest.FromBytes(packed))
	if !ok {
		t.Fatal("the layer is not on the node")
	}
	return l
}

// mountpoint is where a layer is mounted.
func (n *node) mountpoint(t *testing.T, packed []byte) string {
	t.Helper()
	d := digest.FromBytes(packed)
	uses, err := n.uses(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	from := uses[d].from
	from.Layer = d
	path, err := n.layers.mountpoint(t.Context(), from)
	if err != nil {
		t.Fatal(err)
	}
	return path
}

func needFanotify(t *testing.T) {
	hostcheck.Root(t)
	if err := fanotify.Probe(t.TempDir()); err != nil {
		hostcheck.Missing(t, "fanotify pre-content events: "+err.Error())
	}
}

// TestSuite is containerd's own.
func TestSuite(t *testing.T) {
	needFanotify(t)
	// The suite knows by this name that overlayfs cannot rename a lower layer's
	// directory; in all else it is the same for every snapshotter.
	testsuite.SnapshotterSuite(t, "overlayfs", func(ctx context.Context, root string) (snapshots.Snapshotter, func() error, error) {
		n, err := start(ctx, root, nil, slog.New(slog.DiscardHandler))
		if err != nil {
			return nil, nil, err
		}
		return n.Snapshotter, n.tearDown, nil
	})
}

// image is a registry with layers.
type image struct {
	reg    *registrytest.Registry
	layers [][]byte // packed
	tars   [][]byte
}

func newImage(t *testing.T, n int) *image {
	i := &image{reg: registrytest.New(t)}
	for seed := range uint64(n) {
		tar := layertest.Tar(t, 30, seed+1)
		i.tars = append(i.tars, tar)
		i.layers = append(i.layers, layertest.Gzip(t, tar))
		i.reg.AddBlob(i.layers[seed])
	}
	return i
}

// index puts a layer's index into a node's store, as lacunactl index create does.
func (i *image) index(t *testing.T, n *node, layer int) {
	t.Helper()
	d := digest.FromBytes(i.layers[layer])
	if _, _, err := index.Create(t.Context(), bytes.NewReader(i.layers[layer]), n.store.Path(d), spans.BuildOptions{}, index.Expect{}); err != nil {
		t.Fatal(err)
	}
}

// labels are what containerd gives to the Prepare of a layer.
func (i *image) labels(layer int, name string) snapshots.Opt {
	return snapshots.WithLabels(map[string]string{
		snapshots.LabelSnapshotRef:          name,
		snapshotters.TargetRefLabel:         i.reg.Ref("latest"),
		snapshotters.TargetLayerDigestLabel: digest.FromBytes(i.layers[layer]).String(),
	})
}

func testLog(t *testing.T) *slog.Logger {
	return slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))
}

func startForTest(t *testing.T, root string) *node {
	t.Helper()
	n, err := start(t.Context(), root, nil, testLog(t))
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// prepareAll prepares all layers lazily, one on the other.
func prepareAll(t *testing.T, ctx context.Context, n *node, i *image) {
	t.Helper()
	parent := ""
	for layer := range i.layers {
		name := "chain" + string(rune('0'+layer))
		_, err := n.Prepare(ctx, "extract-"+name, parent, i.labels(layer, name))
		if !errdefs.IsAlreadyExists(err) {
			t.Fatalf("layer %d: %v", layer, err)
		}
		info, err := n.Stat(ctx, name)
		if err != nil || info.Kind != snapshots.KindCommitted || info.Parent != parent || info.Labels[snapshots.LabelSnapshotRef] != name {
			t.Fatalf("%+v, %v", info, err)
		}
		parent = name
	}
}

// tree hashes all files below a view of a snapshot, from another process.
func tree(t *testing.T, mounts []mount.Mount) (string, error) {
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
	out, err := exec.Command("sh", "-c", "cd "+dir+" && find . -type f -print0 | sort -z | xargs -0 sha256sum").Output()
	return string(out), err
}

// unpacked hashes what tar(1) makes of the layers.
func (i *image) unpacked(t *testing.T) string {
	dir := t.TempDir()
	for _, layer := range i.tars {
		cmd := exec.Command(hostcheck.Tool(t, "tar"), "-x", "-C", dir)
		cmd.Stdin = bytes.NewReader(layer)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v %s", err, out)
		}
	}
	out, err := exec.Command("sh", "-c", "cd "+dir+" && find . -type f -print0 | sort -z | xargs -0 sha256sum").Output()
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}

func TestLazyLayers(t *testing.T) {
	needFanotify(t)
	ctx := namespaces.WithNamespace(t.Context(), "test")
	root := t.TempDir()
	n := startForTest(t, root)
	img := newImage(t, 3)
	for layer := range img.layers {
		img.index(t, n, layer)
	}
	prepareAll(t, ctx, n, img)
	for _, r := range img.reg.Requests() {
		if !strings.HasSuffix(r, " bytes=0-0") {
			t.Errorf("preparing indexed layers asked the registry for more than whether they can be fetched: %q", r)
		}
	}
	before, err := n.Usage(ctx, "chain2")
	if err != nil || before.Inodes == 0 {
		t.Errorf("usage %+v, %v", before, err)
	}
	mounts, err := n.View(ctx, "view", "chain2")
	if err != nil {
		t.Fatal(err)
	}
	got, err := tree(t, mounts)
	if want := img.unpacked(t); err != nil || got != want {
		t.Fatalf("the tree differs: %v\ngot  %.400s\nwant %.400s", err, got, want)
	}
	after, err := n.Usage(ctx, "chain2")
	if err != nil || after.Size <= before.Size {
		t.Errorf("usage did not grow: %+v, %+v, %v", before, after, err)
	}
	// The same layers for another chain need nothing new.
	if _, err := n.Prepare(ctx, "again", "", img.labels(0, "other")); !errdefs.IsAlreadyExists(err) {
		t.Fatal(err)
	}
	if len(n.layers.all()) != 3 {
		t.Errorf("%d layers", len(n.layers.all()))
	}
	// Containers write on top.
	mounts, err = n.Prepare(ctx, "container", "chain2")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := mount.All(mounts, dir); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "dir0", "file0"), []byte("changed"), 0o644); err != nil {
		t.Error(err)
	}
	if err := mount.UnmountAll(dir, 0); err != nil {
		t.Fatal(err)
	}

	if err := n.Remove(ctx, "chain2"); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("removing a parent: %v", err)
	}
	if err := n.Cleanup(ctx); err != nil || len(n.layers.all()) != 3 {
		t.Errorf("cleanup took layers in use: %v", err)
	}
	for _, key := range []string{"container", "view", "chain2", "chain1"} {
		if err := n.Remove(ctx, key); err != nil {
			t.Errorf("remove %s: %v", key, err)
		}
	}
	if err := n.Cleanup(ctx); err != nil {
		t.Error(err)
	}
	if len(n.layers.all()) != 1 {
		t.Errorf("%d layers left, want the one of chain0 and other", len(n.layers.all()))
	}
	for _, key := range []string{"chain0", "other"} {
		if err := n.Remove(ctx, key); err != nil {
			t.Error(err)
		}
	}
	if err := errors.Join(n.Cleanup(ctx), n.stop()); err != nil {
		t.Error(err)
	}
	left, _ := os.ReadFile("/proc/self/mounts")
	if strings.Contains(string(left), root) {
		t.Error("mounts are left")
	}
}

func TestFallback(t *testing.T) {
	needFanotify(t)
	ctx := t.Context()
	n := startForTest(t, t.TempDir())
	t.Cleanup(func() { _ = n.tearDown() })
	img := newImage(t, 2)
	img.index(t, n, 0)
	if _, err := n.Prepare(ctx, "k0", "", img.labels(0, "chain0")); !errdefs.IsAlreadyExists(err) {
		t.Fatal(err)
	}
	mounts, err := n.Prepare(ctx, "k1", "chain0", img.labels(1, "chain1"))
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range mounts {
		if m.ReadOnly() {
			t.Errorf("containerd would take %+v for a finished extraction", m)
		}
	}
	_, fallbacks := n.layers.Status()
	if len(fallbacks) != 1 || !strings.Contains(fallbacks[0].Reason, "no index") {
		t.Errorf("%+v", fallbacks)
	}
	// An ordinary layer on a lazy one.
	if err := n.Commit(ctx, "chain1", "k1"); err != nil {
		t.Fatal(err)
	}
	if _, err := n.View(ctx, "v", "chain1"); err != nil {
		t.Error(err)
	}
}

func TestBadIndexes(t *testing.T) {
	needFanotify(t)
	for name, damage := range map[string]func(t *testing.T, img *image, n *node){
		"of another layer": func(t *testing.T, img *image, n *node) {
			img.index(t, n, 1)
			if err := os.Rename(n.store.Path(digest.FromBytes(img.layers[1])), n.store.Path(digest.FromBytes(img.layers[0]))); err != nil {
				t.Fatal(err)
			}
		},
		"truncated": func(t *testing.T, img *image, n *node) {
			img.index(t, n, 0)
			if err := os.Truncate(n.store.Path(digest.FromBytes(img.layers[0])), 200); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			n := startForTest(t, t.TempDir())
			t.Cleanup(func() { _ = n.tearDown() })
			img := newImage(t, 2)
			damage(t, img, n)
			if _, err := n.Prepare(t.Context(), "k", "", img.labels(0, "chain0")); err != nil {
				t.Errorf("a bad index must lead to a fallback, not to %v", err)
			}
			if _, fallbacks := n.layers.Status(); len(fallbacks) != 1 {
				t.Errorf("%+v", fallbacks)
			}
		})
	}
}

// TestReadersGetEIO lets what comes from the registry be wrong or missing.
func TestReadersGetEIO(t *testing.T) {
	needFanotify(t)
	for name, fault := range map[string]registrytest.Fault{
		"wrong bytes":   registrytest.Flip,
		"another range": registrytest.OtherRange,
		"401":           registrytest.Status(401, ""),
		"404":           registrytest.Status(404, ""),
		"503":           registrytest.Status(503, ""),
	} {
		t.Run(name, func(t *testing.T) {
			n := startForTest(t, t.TempDir())
			t.Cleanup(func() { _ = n.tearDown() })
			img := lazyImage(t, n)
			target := n.mountpoint(t, img.layers[0])
			for range 500 {
				img.reg.Fail(fault)
			}
			// Bytes that were verified before the fault are good; most fail, each
			// when its patience is over.
			failed := 0
			for _, file := range strings.Fields(string(mustRun(t, "find", target, "-type", "f"))) {
				rel, _ := filepath.Rel(target, file)
				got, err := exec.Command("cat", file).Output()
				if err != nil {
					if failed++; failed > 3 {
						break
					}
				}
				if want := img.file(t, rel); !bytes.HasPrefix(want, got) || err == nil && len(got) != len(want) {
					t.Errorf("%s: wrong bytes", rel)
				}
			}
			if failed == 0 {
				t.Error("no read failed")
			}
			img.reg.ClearFaults()
			img.readsRight(t, n) // after the faults
		})
	}
}

// eventually waits for what happens in the background.
func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for range 600 {
		if holds() {
			return
		}
		time.Sleep(100 * time.Millisecond)
	}
	t.Fatalf("not within a minute: %s", what)
}

func mustRun(t *testing.T, name string, args ...string) []byte {
	t.Helper()
	out, err := exec.Command(name, args...).Output()
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return out
}

// file is a file's content in the only layer.
func (i *image) file(t *testing.T, name string) []byte {
	t.Helper()
	r := tar.NewReader(bytes.NewReader(i.tars[0]))
	for {
		h, err := r.Next()
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if h.Name == name {
			b, err := io.ReadAll(r)
			if err != nil {
				t.Fatal(err)
			}
			return b
		}
	}
}

func TestRestartAndQuarantine(t *testing.T) {
	needFanotify(t)
	ctx := t.Context()
	root := t.TempDir()
	n := startForTest(t, root)
	img := newImage(t, 2)
	for layer := range img.layers {
		img.index(t, n, layer)
	}
	prepareAll(t, ctx, n, img)
	broken := n.layer(t, img.layers[1]).files
	if err := n.tearDown(); err != nil { // as by a reboot: no mounts
		t.Fatal(err)
	}
	if err := os.Truncate(broken.path("bootstrap"), 100); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(root, "layers", "half-made"), 0o700); err != nil {
		t.Fatal(err)
	}
	// Its index is not to be had, for a while.
	away := n.store.Path(digest.FromBytes(img.layers[1]))
	if err := os.Rename(away, away+".away"); err != nil {
		t.Fatal(err)
	}
	n = startForTest(t, root)
	if _, err := n.View(ctx, "good", "chain0"); err != nil {
		t.Errorf("a good layer: %v", err)
	}
	if _, err := n.View(ctx, "bad", "chain1"); !errdefs.IsUnavailable(err) {
		t.Errorf("a broken layer: %v", err)
	}
	if _, err := n.Stat(ctx, "bad"); !errdefs.IsNotFound(err) {
		t.Errorf("the failed view is left: %v", err)
	}
	layers, _ := n.layers.Status()
	states := map[State]int{}
	for _, l := range layers {
		states[l.State]++
	}
	if states[Quarantined] != 1 || states[Filling] != 1 {
		t.Errorf("states %v", states)
	}
	// containerd does not ask again: it is made again by itself.
	if err := os.Rename(away+".away", away); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the broken layer is made again", func() bool { return n.layer(t, img.layers[1]).state == Ready })
	mounts, err := n.View(ctx, "now", "chain1")
	if err != nil {
		t.Fatal(err)
	}
	if got, err := tree(t, mounts); err != nil || got != img.unpacked(t) {
		t.Errorf("the tree differs: %v", err)
	}
	if err := n.tearDown(); err != nil {
		t.Error(err)
	}
}

// TestFallbacksOutliveTheDaemon restarts a node that has left a layer to containerd.
func TestFallbacksOutliveTheDaemon(t *testing.T) {
	path := filepath.Join(t.TempDir(), "fallbacks.json")
	x := openFallbacks(path, testLog(t))
	for i := range maxFallbacks + 1 {
		x.add(Target{Layer: digest.FromString(fmt.Sprint(i)), Ref: "image"}, errors.New("no index"))
	}
	x.drop(digest.FromString("7"))
	again := openFallbacks(path, testLog(t)).all()
	if len(again) != maxFallbacks-1 || again[0].Layer != digest.FromString("1") || again[0].Reason != "no index" {
		t.Errorf("%d, the first %+v", len(again), again[0])
	}
	if err := os.WriteFile(path, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if list := openFallbacks(path, testLog(t)).all(); len(list) != 0 {
		t.Errorf("%+v", list)
	}
}
