package snapshot_test

import (
	"context"
	"log/slog"
	"net"
	"time"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/contrib/snapshotservice"
	"google.golang.org/grpc"

	"github.com/lacuna-snapshotter/lacuna/fetcher/index"
	"github.com/lacuna-snapshotter/lacuna/fetcher/registry"
	"github.com/lacuna-snapshotter/lacuna/ondemand"
	"github.com/lacuna-snapshotter/lacuna/snapshot"
	"github.com/lacuna-snapshotter/lacuna/snapshot/layer"
)

// Serve a snapshotter to containerd, which has it as a proxy plugin. The transport is
// one of packages fanotify, cachefiles and fuse.
func Example() {
	serve := func(ctx context.Context, root, socket string, transport ondemand.Transport) error {
		client, err := registry.New(registry.Options{})
		if err != nil {
			return err
		}
		store, err := index.OpenStore(root + "/index")
		if err != nil {
			return err
		}
		engine, err := ondemand.New(ondemand.Options{Timeout: 2 * time.Minute})
		if err != nil {
			return err
		}
		layers, err := layer.Open(layer.Config{
			Root: root, Client: client, Store: store, Engine: engine, Transport: transport,
			Backfill: layer.Backfill{Enabled: true, Quiet: 5 * time.Second},
			Log:      slog.Default(),
		})
		if err != nil {
			return err
		}
		snapshotter, err := snapshot.New(ctx, layers)
		if err != nil {
			return err
		}
		defer snapshotter.Close() // mounts stay, for the next daemon

		transport.Recover() // all layers are attached: requests that waited are answered
		listener, err := (&net.ListenConfig{}).Listen(ctx, "unix", socket)
		if err != nil {
			return err
		}
		server := grpc.NewServer()
		snapshotsapi.RegisterSnapshotsServer(server, snapshotservice.FromSnapshotter(snapshotter))
		defer context.AfterFunc(ctx, server.GracefulStop)()
		return server.Serve(listener)
	}
	_ = serve
}
