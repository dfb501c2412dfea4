package snapshot

import (
	"errors"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/snapshotters"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/lacuna-snapshotter/lacuna/fetcher/registry/registrytest"
	"github.com/lacuna-snapshotter/lacuna/ondemand"
)

// TestSlowRegistryHoldsOnlyItsLayers makes a quarantined layer again from a registry
// that says nothing: meanwhile trash is emptied and other layers are mended.
func TestSlowRegistryHoldsOnlyItsLayers(t *testing.T) {
	needFanotify(t)
	root := t.TempDir()
	n := startForTest(t, root)
	slow, well := newImage(t, 1), newImage(t, 2)
	slow.index(t, n, 0)
	labels := snapshots.WithLabels(map[string]string{
		snapshots.LabelSnapshotRef:             "slow",
		snapshotters.TargetRefLabel:            slow.reg.Ref("latest"),
		snapshotters.TargetManifestDigestLabel: digest.FromString("a manifest").String(),
		snapshotters.TargetLayerDigestLabel:    digest.FromBytes(slow.layers[0]).String(),
	})
	if _, err := n.Prepare(t.Context(), "k", "", labels); !errdefs.IsAlreadyExists(err) {
		t.Fatal(err)
	}
	well.index(t, n, 1)
	if _, err := n.Prepare(t.Context(), "k", "", well.labels(1, "well")); !errdefs.IsAlreadyExists(err) {
		t.Fatal(err)
	}
	bad, other := n.layer(t, slow.layers[0]).files, n.layer(t, well.layers[1]).files
	err := errors.Join(n.tearDown(), n.store.Remove(bad.Layer), os.Remove(bad.path("bootstrap")), os.Remove(other.path("bootstrap")))
	if err != nil {
		t.Fatal(err)
	}
	gate := make(chan struct{})
	slow.reg.RequireToken("x")
	for range 1000 {
		slow.reg.FailTokens(registrytest.Until(gate))
	}
	t.Cleanup(func() { close(gate) })
	n = startForTest(t, root)
	t.Cleanup(func() { _ = n.tearDown() })
	waits := func() bool { // for the registry, for the first time
		l := n.layer(t, slow.layers[0])
		return l.state == Quarantined && l.retry.wait == 0
	}
	asked := len(slow.reg.Requests())
	eventually(t, "the registry is asked", func() bool { return len(slow.reg.Requests()) > asked })
	if err := os.Mkdir(filepath.Join(root, trashDir, "x"), 0o700); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the trash is empty and the other layer ready", func() bool {
		if !waits() {
			t.Fatal("not until the registry was given up")
		}
		left, err := os.ReadDir(filepath.Join(root, trashDir))
		return err == nil && len(left) == 0 && n.layer(t, well.layers[1]).state == Ready
	})
}

// hooked is a transport some of whose calls are others.
type hooked struct {
	ondemand.Transport
	mount   func() error
	release func() error
}

func (h *hooked) Mount(b *ondemand.Blob, bootstrap, target string) error {
	if h.mount != nil {
		if err := h.mount(); err != nil {
			return err
		}
	}
	return h.Transport.Mount(b, bootstrap, target)
}

func (h *hooked) Release(b *ondemand.Blob) error {
	if h.release != nil {
		if err := h.release(); err != nil {
			return err
		}
	}
	return ondemand.Release(h.Transport, b)
}

// TestCloseWithAMountUnderWay has a mount wait for a transport that does not answer
// any more: it holds up the others' end only for a while.
func TestCloseWithAMountUnderWay(t *testing.T) {
	needFanotify(t)
	n := startForTest(t, t.TempDir())
	img := newImage(t, 1)
	img.index(t, n, 0)
	begun, gate := make(chan struct{}), make(chan struct{})
	n.layers.Transport = &hooked{Transport: n.server, mount: func() error { close(begun); <-gate; return errors.New("given up") }}
	done := make(chan error, 1)
	go func() {
		_, err := n.layers.Ensure(t.Context(), Target{Ref: img.reg.Ref("latest"), Layer: digest.FromBytes(img.layers[0])})
		done <- err
	}()
	<-begun
	n.server.Drain()
	if err := n.layers.Close(); err == nil {
		t.Error("closed a layer that somebody is at work at")
	}
	close(gate)
	if err := <-done; err == nil {
		t.Error("mounted")
	}
	_ = n.tearDown()
}

// TestReleaseIsTriedAgain has the transport not let go of a complete layer at first.
func TestReleaseIsTriedAgain(t *testing.T) {
	needFanotify(t)
	n := startForTest(t, t.TempDir())
	t.Cleanup(func() { _ = n.tearDown() })
	var tries atomic.Int32
	n.layers.Transport = &hooked{Transport: n.server, release: func() error {
		if tries.Add(1) == 1 {
			return errors.New("not now")
		}
		return nil
	}}
	img := lazyImage(t, n)
	if !n.server.Needed() {
		t.Fatal("not marked")
	}
	blob := n.layer(t, img.layers[0]).serving.blob
	if err := blob.Fill(t.Context(), 0, blob.Size()); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the layer is the kernel's alone", func() bool { return tries.Load() == 2 && !n.server.Needed() })
}

// TestMountFailsWhileInUse opens an evicted layer whose bootstrap somebody has open,
// as an overlay that outlived its snapshot has, and the mount fails once: the next
// one succeeds.
func TestMountFailsWhileInUse(t *testing.T) {
	needFanotify(t)
	n := startForTest(t, t.TempDir())
	t.Cleanup(func() { _ = n.tearDown() })
	img := lazyImage(t, n)
	layer := n.layer(t, img.layers[0])
	if err := layer.serving.blob.Fill(t.Context(), 0, 1); err != nil {
		t.Fatal(err)
	}
	n.layers.Cache.MaxBytes = 1
	if err := n.layers.evictOnce(); err != nil || n.layer(t, img.layers[0]).state != Evicted {
		t.Fatal(n.layer(t, img.layers[0]).state, err)
	}
	f, err := os.Open(layer.files.path("bootstrap"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	failed := false
	n.layers.Transport = &hooked{Transport: n.server, mount: func() error {
		if failed {
			return nil
		}
		failed = true
		return errors.New("no memory")
	}}
	if _, err := n.Prepare(t.Context(), "container", "chain0"); !errdefs.IsUnavailable(err) {
		t.Fatal(err)
	}
	if s := n.layer(t, img.layers[0]); s.state != Leaving || s.serving == nil {
		t.Errorf("%s: its blob is open and nobody's", s.state)
	}
	if _, err := n.Prepare(t.Context(), "container", "chain0"); err != nil {
		t.Fatal(err)
	}
	img.readsRight(t, n)
}
