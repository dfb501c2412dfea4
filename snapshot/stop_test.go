package snapshot

import (
	"context"
	"errors"
	"log/slog"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/pkg/namespaces"

	"github.com/lacuna-snapshotter/lacuna/fetcher/index"
	"github.com/lacuna-snapshotter/lacuna/fetcher/registry"
	"github.com/lacuna-snapshotter/lacuna/ondemand"
	"github.com/lacuna-snapshotter/lacuna/ondemand/fanotify"
	"github.com/lacuna-snapshotter/lacuna/ondemand/hold/inflight"
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

// TestStopDuringStart ends a start when the first layer is attached. Its readers are
// answered or left to the next daemon before its blob is closed: else they got EIO.
func TestStopDuringStart(t *testing.T) {
	needFanotify(t)
	root := t.TempDir()
	n := startForTest(t, root)
	img := newImage(t, 2)
	for layer := range img.layers {
		img.index(t, n, layer)
	}
	prepareAll(t, namespaces.WithNamespace(t.Context(), "test"), n, img)
	if err := n.tearDown(); err != nil {
		t.Fatal(err)
	}

	group, err := fanotify.NewGroup()
	if err != nil {
		t.Fatal(err)
	}
	j, err := inflight.New(fanotify.InFlight)
	if err != nil {
		t.Fatal(err)
	}
	server, err := fanotify.Serve(group, j, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	engine, err := ondemand.New(ondemand.Options{Timeout: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	client, err := registry.New(registry.Options{PlainHTTP: true})
	if err != nil {
		t.Fatal(err)
	}
	store, err := index.OpenStore(root + "/index")
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
	layers, err := OpenLayers(LayersConfig{Root: root, Client: client, Store: store, Engine: engine, Transport: o, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := New(ctx, root, layers, slog.New(slog.DiscardHandler)); !errors.Is(err, context.Canceled) {
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
	if err := startForTest(t, root).tearDown(); err != nil {
		t.Error(err)
	}
}

// TestNothingIsMadeReadyAfterStop asks for a layer after Stop: a mount that comes when
// the keepers have been told to end would have nobody to hold its readers.
func TestNothingIsMadeReadyAfterStop(t *testing.T) {
	needFanotify(t)
	n := startForTest(t, t.TempDir())
	defer func() {
		if err := n.tearDown(); err != nil {
			t.Error(err)
		}
	}()
	img := newImage(t, 2)
	for layer := range img.layers {
		img.index(t, n, layer)
	}
	prepareAll(t, namespaces.WithNamespace(t.Context(), "test"), n, img)
	n.layers.Stop()
	for _, d := range n.layers.all() {
		l, _ := n.layers.snapshotOf(d)
		if _, err := n.layers.Ensure(context.Background(), l.files.image()); !errors.Is(err, errStopping) {
			t.Errorf("Ensure: %v", err)
		}
	}
}
