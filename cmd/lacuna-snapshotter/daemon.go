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
	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"

	"github.com/lacuna-snapshotter/lacuna/config"
	"github.com/lacuna-snapshotter/lacuna/fetcher/index"
	"github.com/lacuna-snapshotter/lacuna/fetcher/registry"
	"github.com/lacuna-snapshotter/lacuna/internal/liblog"
	"github.com/lacuna-snapshotter/lacuna/internal/version"
	"github.com/lacuna-snapshotter/lacuna/ondemand"
	"github.com/lacuna-snapshotter/lacuna/ondemand/keeper"
	"github.com/lacuna-snapshotter/lacuna/snapshot"
)

// run is the daemon's life: take what an earlier one left, serve until ctx ends,
// answer what is under way, leave the mounts.
func run(ctx context.Context, c *config.Config) error {
	log := newLogger(c)
	liblog.Redirect(log)
	lock, err := lockRoot(c.Root)
	if err != nil {
		return err
	}
	defer lock.Close()
	if err := checkRoot(c.Root); err != nil {
		return err
	}

	for _, warning := range warnings(c) {
		log.Warn("the daemon starts, but will fail later", "reason", warning)
	}
	client, err := registry.New(registryOptions(c, log))
	if err != nil {
		return err
	}
	store, err := index.OpenStore(filepath.Join(c.Root, "index"))
	if err != nil {
		return err
	}
	engine, err := ondemand.New(ondemand.Options{
		Fetches: c.Fetch.Concurrent, Background: c.Fetch.Background,
		MaxFetch: int64(c.Fetch.MaxBytes), Timeout: c.Fetch.Timeout.Duration,
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
		return errors.Join(err, part(keepers, found))
	}
	defer sockets.unlock()
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
		Settle: snapshot.Settle{Enabled: c.Settle.Enabled, Quiet: c.Settle.Quiet.Duration, Rate: int64(c.Settle.Rate)},
		Cache:  snapshot.Cache{MaxBytes: int64(c.Cache.MaxBytes), Every: c.Cache.Every.Duration},
		Log:    log,
	})
	if err != nil {
		return errors.Join(err, transport.giveUp(sockets), transport.Close())
	}
	snapshotter, err := snapshot.New(ctx, c.Root, layers, log)
	if err != nil {
		if ctx.Err() != nil {
			log.Info("stopped while starting; mounts stay")
			err = nil
		}
		return errors.Join(err, transport.giveUp(sockets), transport.Close())
	}
	transport.Recover() // what a dead daemon has left is answered meanwhile
	log.Info("ready to serve", "version", version.String(), "root", c.Root, "transport", transport.Name())
	err = serve(ctx, c, log, sockets, snapshotter, &status{
		started: time.Now(), root: c.Root, transport: transport, layers: layers, snapshotter: snapshotter, engine: engine, client: client,
		cacheLimit: int64(c.Cache.MaxBytes),
	})
	log.Info("stopping; mounts stay")
	layers.Stop() // now what is mounted stays so, and nothing else comes
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

func registryOptions(c *config.Config, log *slog.Logger) registry.Options {
	return registry.Options{
		HostsDirs: c.Registry.HostsDirs, DockerConfig: c.Registry.DockerConfig, PlainHTTP: c.Registry.PlainHTTP,
		UserAgent: "lacuna/" + version.String(),
		Retry: registry.Retry{
			Attempts: c.Registry.Attempts, Base: c.Registry.Backoff.Duration, Max: c.Registry.MaxBackoff.Duration,
			Sleep: ondemand.Sleep,
		},
		Stall:       c.Registry.Stall.Duration,
		Connections: c.Fetch.Concurrent,
		Notify: func(t registry.Trouble, over bool) {
			if over {
				log.Info("a registry answers again", "registry", t.Registry, "since", t.Since)
				return
			}
			log.Warn("a registry does not answer as it should; its readers wait", "registry", t.Registry, "error", t.Error)
		},
	}
}

// serve runs the gRPC service and the status service until ctx ends.
func serve(ctx context.Context, c *config.Config, log *slog.Logger, on *sockets, s *snapshot.Snapshotter, st *status) error {
	server := grpc.NewServer()
	snapshotsapi.RegisterSnapshotsServer(server, snapshotservice.FromSnapshotter(s))
	healthy := health.NewServer()
	grpc_health_v1.RegisterHealthServer(server, healthy)
	web := &http.Server{Handler: st.handler(), ReadHeaderTimeout: 10 * time.Second, ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelWarn)}

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
		select {
		case err := <-st.transport.Failed():
			return fmt.Errorf("transport %s reads no more requests; the next daemon takes over: %w", st.transport.Name(), err)
		case <-gctx.Done():
			return nil
		}
	})
	g.Go(func() error { return watch(gctx, c.Address, st.able, log) })
	g.Go(func() error {
		on.watch(gctx, log)
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
