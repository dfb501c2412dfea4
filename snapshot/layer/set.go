package layer

import (
	"context"
	"errors"
	"log/slog"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/lacuna-snapshotter/lacuna/fetcher/index"
	"github.com/lacuna-snapshotter/lacuna/fetcher/registry"
	"github.com/lacuna-snapshotter/lacuna/ondemand"
	"github.com/lacuna-snapshotter/lacuna/snapshot/dirs"
)

// Config is what a Set is made of.
type Config struct {
	Root      string
	Client    *registry.Client
	Store     *index.Store
	Engine    *ondemand.Engine
	Transport ondemand.Transport
	// Adopted says that the transport serves the mounts of an earlier daemon,
	// whose requests have waited meanwhile. Without it they are replaced.
	Adopted  bool
	Backfill Backfill
	Cache    Cache
	Log      *slog.Logger
}

// Use is what the snapshots of a node make of a layer.
type Use struct {
	Needed bool     // a committed snapshot stands for it
	From   Target   // where that came from
	Active []string // keys of active snapshots and views on it, which may be mounted
}

// Uses tells what the snapshots make of each layer. It is the whole of what a Set
// knows about snapshots.
type Uses func(context.Context) (map[digest.Digest]Use, error)

// Set is the layers of a node.
type Set struct {
	Config
	work
	dirs      *dirs.Dirs
	indexes   *indexes
	probes    *probes
	fallbacks *fallbacks
	notices   notices
	uses      Uses // set by Start, before there is any layer

	stopping sync.Once

	over atomic.Bool // the cache is over its limit

	mu          sync.Mutex
	layers      map[digest.Digest]*Layer
	mountpoints map[string]digest.Digest // names below m, by who has them
}

// Open makes the directories. Start brings back what is in them.
func Open(c Config) (*Set, error) {
	d, err := dirs.Open(c.Root, reachable)
	if err != nil {
		return nil, err
	}
	c.Adopted = c.Adopted && !isAbandoned(c.Root)
	return &Set{
		Config:  c,
		work:    newWork(),
		dirs:    d,
		indexes: &indexes{client: c.Client, store: c.Store, log: c.Log},
		probes:  &probes{client: c.Client},
		layers:  map[digest.Digest]*Layer{}, mountpoints: map[string]digest.Digest{},
		fallbacks: openFallbacks(filepath.Join(c.Root, "fallbacks.json"), c.Log),
	}, nil
}

// Start brings back the layers of an earlier run and starts the background work. It
// is called once. After an error only Stop and Close may be called.
func (l *Set) Start(ctx context.Context, uses Uses) error {
	l.uses = uses
	l.loadUnserved()
	if err := l.restore(ctx); err != nil {
		return err
	}
	l.restored()
	l.background()
	return nil
}

// Dirs are the directories below the root, which the set shares with the
// snapshots.
func (l *Set) Dirs() *dirs.Dirs { return l.dirs }

// with calls f with a layer's lifecycle lock.
func (l *Set) with(ctx context.Context, d digest.Digest, f func(*Layer) error) error {
	layer, err := l.lock(ctx, d)
	if err != nil {
		return err
	}
	defer l.unlock(layer)
	return f(layer)
}

// all lists the layers of the table.
func (l *Set) all() []digest.Digest {
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
func (l *Set) Served() bool {
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
	return l.dirs.TrashInUse()
}

// lastSync is how long Close makes what was filled durable, for the case that the
// machine goes down: shorter than a service manager's patience.
const lastSync = 5 * time.Second

// Stop ends background work, and has the transport take no more requests: those under
// way need their blobs open until they are answered. After it no layer is made ready
// any more, so what Served says stays true.
func (l *Set) Stop() {
	l.stopping.Do(func() {
		l.end()
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
func (l *Set) Close() error {
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
