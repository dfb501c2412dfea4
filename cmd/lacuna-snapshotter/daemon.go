package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"time"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/contrib/snapshotservice"
	"github.com/coreos/go-systemd/v22/daemon"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"

	"github.com/lacuna-snapshotter/lacuna/config"
	"github.com/lacuna-snapshotter/lacuna/fetcher/index"
	"github.com/lacuna-snapshotter/lacuna/fetcher/registry"
	"github.com/lacuna-snapshotter/lacuna/internal/descriptor"
	"github.com/lacuna-snapshotter/lacuna/internal/version"
	"github.com/lacuna-snapshotter/lacuna/ondemand"
	"github.com/lacuna-snapshotter/lacuna/ondemand/keeper"
	"github.com/lacuna-snapshotter/lacuna/snapshot"
)

// run is the daemon's life: take what an earlier one left, serve until ctx ends,
// answer what is under way, leave the mounts.
func run(ctx context.Context, c *config.Config) error {
	log := newLogger(c)
	lock, err := lockRoot(c.Root)
	if err != nil {
		return err
	}
	defer lock.Close()

	client, err := registry.New(registryOptions(c))
	if err != nil {
		return err
	}
	store, err := index.OpenStore(filepath.Join(c.Root, "index"))
	if err != nil {
		return err
	}
	engine, err := ondemand.New(ondemand.Options{
		Fetches: c.Fetch.Concurrent, Background: c.Fetch.Background,
		MaxFetch: c.Fetch.MaxBytes, Timeout: time.Duration(c.Fetch.Timeout),
	})
	if err != nil {
		return err
	}
	keepers, found, err := keeper.Open(c.Root, keeperCount, keeper.Program{Keeper: []string{"keeper", c.Root}, Anchor: []string{"anchor", c.Root}}, log)
	if err != nil {
		return err
	}
	sockets, err := openSockets(c, keepers, found)
	if err != nil {
		return errors.Join(err, keepers.Leave())
	}
	transport, err := openTransport(c, engine, keepers, found, log)
	if err != nil {
		return errors.Join(err, sockets.Close())
	}
	if err := transport.anchor(c, sockets); err != nil {
		log.Warn("nothing holds readers if the daemon and all keepers are killed at once: no anchor", "transport", transport.Name(), "reason", err)
	}
	layers, err := snapshot.OpenLayers(snapshot.LayersConfig{
		Root: c.Root, Client: client, Store: store, Engine: engine,
		Transport: transport, Adopted: transport.adopted,
		Settle: snapshot.Settle{Enabled: c.Settle.Enabled, Quiet: time.Duration(c.Settle.Quiet), Rate: c.Settle.Rate},
		Cache:  snapshot.Cache{MaxBytes: c.Cache.MaxBytes, Every: time.Duration(c.Cache.Every)},
		Log:    log,
	})
	if err != nil {
		return errors.Join(err, transport.Close())
	}
	snapshotter, err := snapshot.New(ctx, c.Root, layers, log)
	if err != nil {
		return errors.Join(err, transport.Close())
	}
	transport.Recover()
	log.Info("ready to serve", "version", version.String(), "root", c.Root, "transport", transport.Name())
	err = serve(ctx, c, log, sockets, snapshotter, &status{
		started: time.Now(), root: c.Root, transport: transport, layers: layers, snapshotter: snapshotter, engine: engine, client: client,
	})
	log.Info("stopping; mounts stay")
	// Requests first: a fill needs its blob open until it is answered.
	transport.Drain()
	return errors.Join(err, transport.leave(layers, sockets), snapshotter.Close(), transport.Close())
}

func newLogger(c *config.Config) *slog.Logger {
	var level slog.Level
	_ = level.UnmarshalText([]byte(c.LogLevel)) // config.Check has seen it
	o := &slog.HandlerOptions{Level: level}
	if c.LogFormat == "json" {
		return slog.New(slog.NewJSONHandler(os.Stderr, o))
	}
	return slog.New(slog.NewTextHandler(os.Stderr, o))
}

// lockTime is how long a start waits for the lock: a child that a killed daemon
// was about to execute has it too, until it is executed.
const lockTime = 5 * time.Second

// lockRoot keeps a second daemon out of the directory.
func lockRoot(root string) (*os.File, error) {
	if err := os.MkdirAll(root, 0o700); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(filepath.Join(root, "lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	for deadline := time.Now().Add(lockTime); ; time.Sleep(20 * time.Millisecond) {
		err := descriptor.Use(f, func(fd int) error { return unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB) })
		switch {
		case err == nil:
			return f, nil
		case !errors.Is(err, unix.EAGAIN) || time.Now().After(deadline):
			f.Close()
			return nil, fmt.Errorf("another lacuna-snapshotter uses %s: %w", root, err)
		}
	}
}

func registryOptions(c *config.Config) registry.Options {
	return registry.Options{
		HostsDirs: c.Registry.HostsDirs, DockerConfig: c.Registry.DockerConfig, PlainHTTP: c.Registry.PlainHTTP,
		UserAgent: "lacuna/" + version.String(),
		Retry: registry.Retry{
			Attempts: c.Registry.Attempts, Base: time.Duration(c.Registry.Backoff), Max: time.Duration(c.Registry.MaxBackoff),
		},
		Stall:       time.Duration(c.Registry.Stall),
		Connections: c.Fetch.Concurrent,
	}
}

// serve runs the gRPC service and the status service until ctx ends.
func serve(ctx context.Context, c *config.Config, log *slog.Logger, on *sockets, s *snapshot.Snapshotter, st *status) error {
	server := grpc.NewServer()
	snapshotsapi.RegisterSnapshotsServer(server, snapshotservice.FromSnapshotter(s))
	healthy := health.NewServer()
	grpc_health_v1.RegisterHealthServer(server, healthy)
	web := &http.Server{Handler: st.handler(), ReadHeaderTimeout: 10 * time.Second}

	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error { return server.Serve(on.grpc) })
	g.Go(func() error {
		if err := web.Serve(on.status); !errors.Is(err, http.ErrServerClosed) {
			return err
		}
		return nil
	})
	g.Go(func() error {
		st.report(gctx, healthy)
		return nil
	})
	g.Go(func() error {
		<-gctx.Done()
		notify(log, daemon.SdNotifyStopping)
		healthy.Shutdown()
		stopped := make(chan struct{})
		go func() { server.GracefulStop(); close(stopped) }()
		select {
		case <-stopped:
		case <-time.After(10 * time.Second):
			server.Stop()
		}
		return web.Close()
	})
	log.Info("serving", "address", c.Address, "status", c.Status)
	notify(log, daemon.SdNotifyReady)
	return g.Wait()
}

func notify(log *slog.Logger, state string) {
	if _, err := daemon.SdNotify(false, state); err != nil {
		log.Warn("telling systemd", "state", state, "error", err)
	}
}
