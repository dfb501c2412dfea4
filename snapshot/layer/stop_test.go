package layer_test

import (
	"context"
	"errors"
	"log/slog"
	"testing"

	"github.com/containerd/containerd/v2/pkg/namespaces"

	"github.com/lacuna-snapshotter/lacuna/ondemand"
	"github.com/lacuna-snapshotter/lacuna/ondemand/fanotify"
	"github.com/lacuna-snapshotter/lacuna/snapshot/layer"
	"github.com/lacuna-snapshotter/lacuna/snapshot/snapshottest"
)

// observed is a transport that calls back.
type observed struct {
	ondemand.Transport
	attached func(*ondemand.Blob)
	drained  func()
}

func (o *observed) Attach(b *ondemand.Blob, bootstrap string) error {
	err := o.Transport.Attach(b, bootstrap)
	o.attached(b)
	return err
}

func (o *observed) Drain() {
	o.drained()
	o.Transport.Drain()
}

// TestStopDuringStart cancels a start when the first layer is attached. Its readers must
// be answered or left to the next daemon before its blob is closed: after that they
// would get EIO.
func TestStopDuringStart(t *testing.T) {
	snapshottest.NeedFanotify(t)
	root := t.TempDir()
	n := snapshottest.New(t, root)
	img := snapshottest.NewImage(t, 2)
	for layer := range img.Layers {
		img.Index(t, n, layer)
	}
	snapshottest.PrepareAll(t, namespaces.WithNamespace(t.Context(), "test"), n, img)
	if err := n.TearDown(); err != nil {
		t.Fatal(err)
	}

	group, err := fanotify.NewGroup()
	if err != nil {
		t.Fatal(err)
	}
	server, err := snapshottest.Serve(group, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	var blobs []*ondemand.Blob
	drained := false
	o := &observed{server, func(b *ondemand.Blob) {
		blobs = append(blobs, b)
		stop()
	}, func() {
		drained = true
		for _, b := range blobs {
			if errors.Is(b.Sync(), ondemand.ErrClosed) {
				t.Error("a blob was closed under its readers")
			}
		}
	}}
	if _, err := snapshottest.Over(ctx, root, o, server, false, slog.New(slog.DiscardHandler)); !errors.Is(err, context.Canceled) {
		t.Errorf("New: %v", err)
	}
	if len(blobs) != 1 || !drained {
		t.Errorf("%d blobs attached, drained: %v", len(blobs), drained)
	}
	if !errors.Is(blobs[0].Sync(), ondemand.ErrClosed) {
		t.Error("the blob stays open")
	}
	if err := server.Close(); err != nil {
		t.Error(err)
	}
	if err := snapshottest.New(t, root).TearDown(); err != nil {
		t.Error(err)
	}
}

// TestNothingIsMadeReadyAfterStop asks for a layer after Stop: no holder would keep the
// readers of a mount that is made when the holders have been released.
func TestNothingIsMadeReadyAfterStop(t *testing.T) {
	snapshottest.NeedFanotify(t)
	n := snapshottest.New(t, t.TempDir())
	defer func() {
		if err := n.TearDown(); err != nil {
			t.Error(err)
		}
	}()
	img := snapshottest.NewImage(t, 2)
	for layer := range img.Layers {
		img.Index(t, n, layer)
	}
	snapshottest.PrepareAll(t, namespaces.WithNamespace(t.Context(), "test"), n, img)
	n.Layers.Stop()
	for _, d := range n.Layers.All() {
		l, _ := n.Layers.Look(d)
		if _, err := n.Layers.Ensure(context.Background(), l.Files().Image()); !errors.Is(err, layer.ErrStopping) {
			t.Errorf("Ensure: %v", err)
		}
	}
}
