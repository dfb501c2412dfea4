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
	// Adopted says that the transport was adopted from an earlier daemon: its
	// mounts are served, and requests have waited meanwhile. Without it mounts of an
	// earlier daemon are replaced.
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
	resolver  *index.Resolver
	probes    *probes
	fallbacks *fallbacks
	notices   *notices
	uses      Uses // set by Start, before there is any layer

	stopping sync.Once
	over     atomic.Bool // the cache is over its limit

	predictions predictions

	mu          sync.Mutex
	layers      map[digest.Digest]*Layer
	mountpoints map[string]digest.Digest // names below snapshots/m, and their layers
}

// Open makes the directories. Start restores the layers that are in them.
func Open(c Config) (*Set, error) {
	d, err := dirs.Open(c.Root, reachable)
	if err != nil {
		return nil, err
	}
	c.Adopted = c.Adopted && !isAbandoned(c.Root)
	return &Set{
		Config:   c,
		work:     newWork(),
		dirs:     d,
		resolver: index.NewResolver(c.Client, c.Store, c.Log),
		probes:   &probes{client: c.Client},
		layers:   map[digest.Digest]*Layer{}, mountpoints: map[string]digest.Digest{},
		fallbacks: openFallbacks(filepath.Join(c.Root, "fallbacks.json"), c.Log),
		notices:   openNotices(c.Root, c.Log),
	}, nil
}

// Start restores the layers of an earlier run and starts the background work. It is
// called once. After an error only Stop and Close may be called.
func (l *Set) Start(ctx context.Context, uses Uses) error {
	l.uses = uses
	if err := l.restore(ctx); err != nil {
		return err
	}
	l.notices.allReplaced()
	l.start(l.predictRestored)
	l.start(l.backfill)
	l.start(l.keepLimit)
	l.start(l.finishLeaving)
	l.start(l.rebuildQuarantined)
	l.start(l.syncBlobs)
	return nil
}

// lookEvery is how often leaving and quarantined layers are looked at.
const lookEvery = 2 * time.Second

// Dirs are the directories below the root, which the set shares with the
// snapshots.
func (l *Set) Dirs() *dirs.Dirs { return l.dirs }

// Served reports whether a process may read a hole for which the transport must answer
// or delay the read: through a mount of ours, or through one that could not be served.
func (l *Set) Served() bool {
	for _, d := range l.all() {
		view, ok := l.view(d)
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

// lastSync bounds how long Close makes filled bytes durable, in case the machine is
// shut down: less than a service manager waits.
const lastSync = 5 * time.Second

// Stop ends the background work and drains the transport: requests under way need
// their blobs open until they are answered. After Stop no layer is made ready any more:
// once Served is false, it stays so.
func (l *Set) Stop() {
	l.stopping.Do(func() {
		l.end()
		ctx, cancel := context.WithTimeout(context.Background(), lastSync)
		defer cancel()
		for _, d := range l.all() { // a holder of a lifecycle lock may not have seen the end
			if layer, err := l.lock(ctx, d); err == nil {
				l.unlock(layer)
			}
		}
		l.Transport.Drain()
	})
}

// Close stops the set and closes the blobs, except that of a layer whose lifecycle lock
// is held for longer than lastSync. Mounts stay; the transport is the caller's.
func (l *Set) Close() error {
	l.Stop()
	ctx, cancel := context.WithTimeout(context.Background(), lastSync)
	defer cancel()
	if err := l.Engine.Sync(ctx); err != nil {
		l.Log.Warn("filled bytes could not be made durable; after a loss of power they are fetched again", "error", err)
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
