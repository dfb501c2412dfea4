package layer_test

import (
	"errors"
	"os"
	"sync/atomic"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/lacuna-snapshotter/lacuna/ondemand"
	"github.com/lacuna-snapshotter/lacuna/snapshot/layer"
	"github.com/lacuna-snapshotter/lacuna/snapshot/snapshottest"
)

// hooked is a transport with hooks before some of its calls.
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

// TestCloseWithAMountUnderWay has a mount wait for a transport that does not answer any
// more: Close waits for it only for a while.
func TestCloseWithAMountUnderWay(t *testing.T) {
	snapshottest.NeedFanotify(t)
	n := snapshottest.New(t, t.TempDir())
	img := snapshottest.NewImage(t, 1)
	img.Index(t, n, 0)
	begun, gate := make(chan struct{}), make(chan struct{})
	n.Layers.Transport = &hooked{Transport: n.Server, mount: func() error { close(begun); <-gate; return errors.New("given up") }}
	done := make(chan error, 1)
	go func() {
		_, err := n.Layers.Ensure(t.Context(), layer.Target{Ref: img.Reg.Ref("latest"), Layer: digest.FromBytes(img.Layers[0])})
		done <- err
	}()
	<-begun
	n.Server.Drain()
	if err := n.Layers.Close(); err == nil {
		t.Error("closed a layer whose lifecycle lock is held")
	}
	close(gate)
	if err := <-done; err == nil {
		t.Error("mounted")
	}
	_ = n.TearDown()
}

// TestReleaseIsTriedAgain has the release of a complete layer fail at first.
func TestReleaseIsTriedAgain(t *testing.T) {
	snapshottest.NeedFanotify(t)
	n := snapshottest.New(t, t.TempDir())
	t.Cleanup(func() { _ = n.TearDown() })
	var tries atomic.Int32
	n.Layers.Transport = &hooked{Transport: n.Server, release: func() error {
		if tries.Add(1) == 1 {
			return errors.New("not now")
		}
		return nil
	}}
	img := snapshottest.LazyImage(t, n)
	if !n.Server.Needed() {
		t.Fatal("not marked")
	}
	blob := look(t, n, img.Layers[0]).Blob()
	if err := blob.Fill(t.Context(), 0, blob.Size()); err != nil {
		t.Fatal(err)
	}
	snapshottest.Eventually(t, "the layer is the kernel's alone", func() bool { return tries.Load() == 2 && !n.Server.Needed() })
}

// TestMountFailsWhileInUse opens an evicted layer whose bootstrap is open elsewhere, as
// by an overlay that outlived its snapshot, and the mount fails once: the next one
// succeeds.
func TestMountFailsWhileInUse(t *testing.T) {
	snapshottest.NeedFanotify(t)
	n := snapshottest.New(t, t.TempDir())
	t.Cleanup(func() { _ = n.TearDown() })
	img := snapshottest.LazyImage(t, n)
	l := look(t, n, img.Layers[0])
	if err := l.Blob().Fill(t.Context(), 0, 1); err != nil {
		t.Fatal(err)
	}
	n.Layers.Cache.MaxBytes = 1
	if err := n.Layers.EvictOnce(); err != nil || look(t, n, img.Layers[0]).State() != layer.Evicted {
		t.Fatal(look(t, n, img.Layers[0]).State(), err)
	}
	f, err := os.Open(l.Files().Path("bootstrap"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	failed := false
	n.Layers.Transport = &hooked{Transport: n.Server, mount: func() error {
		if failed {
			return nil
		}
		failed = true
		return errors.New("no memory")
	}}
	if _, err := n.Prepare(t.Context(), "container", "chain0"); !errdefs.IsUnavailable(err) {
		t.Fatal(err)
	}
	if s := look(t, n, img.Layers[0]); s.State() != layer.Leaving || s.Blob() == nil {
		t.Errorf("%s: its blob is lost", s.State())
	}
	if _, err := n.Prepare(t.Context(), "container", "chain0"); err != nil {
		t.Fatal(err)
	}
	img.ReadsRight(t, n)
}
