package snapshot

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/lacuna-snapshotter/lacuna/fetcher/index"
	"github.com/lacuna-snapshotter/lacuna/fetcher/registry"
	"github.com/lacuna-snapshotter/lacuna/ondemand"
)

// LayersConfig is what Layers is made of.
type LayersConfig struct {
	Root      string
	Client    *registry.Client
	Store     *index.Store
	Engine    *ondemand.Engine
	Transport ondemand.Transport
	// Adopted says that the transport serves the mounts of an earlier daemon,
	// whose requests have waited meanwhile. Without it they are replaced.
	Adopted bool
	Settle  Settle
	Cache   Cache
	Log     *slog.Logger
}

// use is what the snapshots of a node make of a layer.
type use struct {
	stands    bool     // a committed snapshot stands for it
	from      Target   // where that came from
	snapshots []string // keys of active ones and views, which may be mounted
}

// Layers are the layers of a node.
type Layers struct {
	LayersConfig
	dirs      *dirs
	resolver  *index.Resolver
	probes    *probes
	fallbacks *fallbacks
	// uses tells what snapshots there are. It is set before any layer is.
	uses func(context.Context) (map[digest.Digest]use, error)
	// unserved is told of a layer whose mount was not served, and is set as uses is.
	unserved func(context.Context, digest.Digest) error

	ctx    context.Context // of background work; ends with Close
	cancel context.CancelFunc
	work   sync.WaitGroup

	stopping sync.Once

	over atomic.Bool // the cache is over its limit

	predictions predictions

	mu          sync.Mutex
	layers      map[digest.Digest]*Layer
	mountpoints map[string]digest.Digest // names below m, by who has them
}

// OpenLayers makes the directories. Restore brings back what is in them.
func OpenLayers(c LayersConfig) (*Layers, error) {
	d, err := openDirs(c.Root)
	if err != nil {
		return nil, err
	}
	c.Adopted = c.Adopted && !isAbandoned(c.Root)
	ctx, cancel := context.WithCancel(context.Background())
	return &Layers{
		LayersConfig: c,
		dirs:         d,
		resolver:     index.NewResolver(c.Client, c.Store, c.Log),
		probes:       &probes{client: c.Client},
		ctx:          ctx, cancel: cancel,
		layers: map[digest.Digest]*Layer{}, mountpoints: map[string]digest.Digest{},
		fallbacks: openFallbacks(filepath.Join(c.Root, "fallbacks.json"), c.Log),
	}, nil
}

// mountpoint is where a layer's files are. A layer that is not ready is made so:
// one that was evicted, one that is leaving, and one that cannot be used as it is
// and may be made again.
func (l *Layers) mountpoint(ctx context.Context, t Target) (string, error) {
	layer, err := l.lock(ctx, t.Layer)
	if err != nil {
		return "", err
	}
	defer l.unlock(layer)
	l.mu.Lock()
	wait := layer.state == Quarantined && !layer.retry.due()
	l.mu.Unlock()
	if wait {
		return "", fmt.Errorf("quarantined: %w", layer.err)
	}
	if err := l.ready(ctx, layer, t, anyway); err != nil {
		return "", err
	}
	return layer.files.target, nil
}

// anyway is for a layer that is wanted whether it can be fetched or not: what is
// filled can be read.
func anyway(context.Context) error { return nil }

// removeUnused removes the layers that no snapshot stands for.
func (l *Layers) removeUnused(ctx context.Context) error {
	uses, err := l.uses(ctx)
	if err != nil {
		return err
	}
	var errs []error
	for _, d := range l.all() {
		if !uses[d].stands {
			errs = append(errs, l.with(ctx, d, l.remove))
		}
	}
	return errors.Join(append(errs, l.sweep(ctx))...)
}

// with calls f with a layer's lifecycle lock.
func (l *Layers) with(ctx context.Context, d digest.Digest, f func(*Layer) error) error {
	layer, err := l.lock(ctx, d)
	if err != nil {
		return err
	}
	defer l.unlock(layer)
	return f(layer)
}

// all lists the layers of the table.
func (l *Layers) all() []digest.Digest {
	l.mu.Lock()
	defer l.mu.Unlock()
	list := make([]digest.Digest, 0, len(l.layers))
	for d := range l.layers {
		list = append(list, d)
	}
	return list
}

// Served reports whether anybody may read a hole that the transport must answer,
// or hold back: a mount of ours, or what is left of one that could not be served.
func (l *Layers) Served() bool {
	for _, d := range l.all() {
		view, ok := l.snapshotOf(d)
		switch {
		case !ok || view.files == nil:
		case view.serving != nil:
			if l.Transport.Serves(view.serving.blob) {
				return true
			}
		case view.state == Quarantined:
			if reachable(view.files.dir) {
				return true
			}
		}
	}
	return l.dirs.trashReachable()
}

// lastSync is how long Close makes what was filled durable, for the case that the
// machine goes down: shorter than a service manager's patience.
const lastSync = 5 * time.Second

// Stop ends background work, and has the transport take no more requests: those under
// way need their blobs open until they are answered. After it no layer is made ready
// any more, so what Served says stays true.
func (l *Layers) Stop() {
	l.stopping.Do(func() {
		l.mu.Lock() // see start
		l.cancel()
		l.mu.Unlock()
		l.work.Wait()
		ctx, cancel := context.WithTimeout(context.Background(), lastSync)
		defer cancel()
		for _, d := range l.all() { // who has a lifecycle lock by now may not have seen it
			if layer, err := l.lock(ctx, d); err == nil {
				l.unlock(layer)
			}
		}
		l.Transport.Drain()
	})
}

// Close is Stop, and closes the blobs, but those of a layer at which somebody is at
// work for longer than lastSync. Mounts stay; the transport is the caller's.
func (l *Layers) Close() error {
	l.Stop()
	ctx, cancel := context.WithTimeout(context.Background(), lastSync)
	defer cancel()
	if err := l.Engine.Sync(ctx); err != nil {
		l.Log.Warn("what was filled last is fetched again after a reboot", "error", err)
	}
	var errs []error
	for _, d := range l.all() {
		errs = append(errs, l.with(ctx, d, func(layer *Layer) error {
			on := layer.serving
			if on == nil {
				return nil
			}
			err := on.blob.Close()
			on.source.drop()
			return err
		}))
	}
	return errors.Join(errs...)
}
