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
	"github.com/lacuna-snapshotter/lacuna/ondemand/hold"
	"github.com/lacuna-snapshotter/lacuna/ondemand/hold/lock"
	"github.com/lacuna-snapshotter/lacuna/ondemand/hold/socket"
	"github.com/lacuna-snapshotter/lacuna/snapshot"
	"github.com/lacuna-snapshotter/lacuna/snapshot/layer"
)

// keeperCount is how many keepers there are: when the daemon and one of them are killed
// together, two are left until the next daemon replaces what is missing.
const keeperCount = 3

// run is the daemon's life: adopt what an earlier one left, serve until ctx ends,
// answer what is under way, leave the mounts.
func run(ctx context.Context, c *config.Config) error {
	log := newLogger(c)
	liblog.Redirect(log)
	locked, err := lock.Root(c.Root)
	if err != nil {
		return err
	}
	defer locked.Unlock()
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
	holders, adopted, err := hold.Adopt(c.Root, keeperCount, hold.Program{Keeper: []string{"keeper", c.Root}, Anchor: []string{"anchor", c.Root}}, log)
	if err != nil {
		return err
	}
	held := len(adopted) > 0
	sockets, err := socket.Open(c.Root, holders, adopted, c.Address, c.Status)
	if err != nil {
		return errors.Join(err, end(holders, nil, held))
	}
	defer sockets.Unlock()
	opened, err := openTransport(c, engine, holders, adopted, log)
	if err != nil {
		return errors.Join(err, sockets.Close())
	}
	transport := opened.Transport
	if err := anchor(c, holders, sockets, opened); err != nil {
		log.Warn("no anchor: if the daemon and all keepers are killed at once, readers do not wait for the next daemon", "transport", transport.Name(), "reason", err)
	}
	layers, err := layer.Open(layer.Config{
		Root: c.Root, Client: client, Store: store, Engine: engine,
		Transport: transport, Adopted: opened.Adopted,
		Backfill: layer.Backfill{Enabled: c.Backfill.Enabled, Quiet: c.Backfill.Quiet.Duration, Rate: int64(c.Backfill.Rate)},
		Cache:    layer.Cache{MaxBytes: int64(c.Cache.MaxBytes), Every: c.Cache.Every.Duration},
		Log:      log,
	})
	if err != nil {
		return errors.Join(err, end(holders, sockets, opened.Adopted || transport.Needed()), transport.Close())
	}
	snapshotter, err := snapshot.New(ctx, layers)
	if err != nil {
		if ctx.Err() != nil {
			log.Info("stopped while starting; mounts stay")
			err = nil
		}
		return errors.Join(err, end(holders, sockets, opened.Adopted || transport.Needed()), transport.Close())
	}
	transport.Recover() // requests that a dead daemon has left are answered meanwhile
	log.Info("ready to serve", "version", version.String(), "root", c.Root, "transport", transport.Name())
	err = serve(ctx, c, log, sockets, snapshotter, &status{
		started: time.Now(), root: c.Root, transport: transport, passedOver: opened.PassedOver, holders: holders, layers: layers, engine: engine, client: client,
		cacheLimit: int64(c.Cache.MaxBytes),
	})
	log.Info("stopping; mounts stay")
	layers.Stop() // from here on no mount is made or unmounted
	// The kernel may know of more mounts than the layers do: those of layers that
	// could not be opened.
	needed := layers.Served() || transport.Needed()
	if needed {
		log.Info("layers need their transport; its holders stay, and readers wait for the next start")
	}
	return errors.Join(err, end(holders, sockets, needed), snapshotter.Close(), transport.Close())
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
			log.Warn("a registry does not answer requests, or answers with errors; readers of its layers wait", "registry", t.Registry, "error", t.Error)
		},
	}
}

// serve runs the gRPC service and the status service until ctx ends.
func serve(ctx context.Context, c *config.Config, log *slog.Logger, on socket.Listeners, s *snapshot.Snapshotter, st *status) error {
	server := grpc.NewServer()
	snapshotsapi.RegisterSnapshotsServer(server, snapshotservice.FromSnapshotter(s))
	healthy := health.NewServer()
	grpc_health_v1.RegisterHealthServer(server, healthy)
	web := &http.Server{Handler: st.handler(), ReadHeaderTimeout: 10 * time.Second, ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelWarn)}

	g, gctx := errgroup.WithContext(ctx)
	// As they were opened: the snapshot service's, then the status service's.
	g.Go(func() error { return server.Serve(on[0]) })
	g.Go(func() error {
		if err := web.Serve(on[1]); !errors.Is(err, http.ErrServerClosed) {
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
			return fmt.Errorf("transport %s reads no more requests; the next daemon adopts it: %w", st.transport.Name(), err)
		case <-gctx.Done():
			return nil
		}
	})
	g.Go(func() error { return watch(gctx, c.Address, st.able, log) })
	g.Go(func() error {
		on.Watch(gctx, log)
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
		log.Warn("systemd could not be notified", "state", state, "error", err)
	}
}
