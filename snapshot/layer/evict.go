package layer

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/lacuna-snapshotter/lacuna/ondemand"
)

// Cache is the policy of what may stay on the node's disk.
type Cache struct {
	// MaxBytes of disk that layers may take; zero is no limit. It is kept by
	// evicting layers that no container uses, the longest unused first. Layers
	// that containers use stay and are filled as they are read, over the limit if
	// need be; backfill pauses then.
	MaxBytes int64
	// Every is how often the limit is checked.
	Every time.Duration
}

// A layer that no container uses may be evicted: unmounted and emptied. It stays
// known, and is opened again when a snapshot asks for its mountpoint. Only whole
// layers that no process can have mounted are emptied: on fanotify a reader whose
// event was allowed cannot be told from one that has read, so no part of a mounted
// blob can be punched safely.

// keepLimit keeps the limit as long as the daemon runs.
func (l *Set) keepLimit() {
	if l.Cache.MaxBytes == 0 {
		return
	}
	for sleep(l.ctx, l.Cache.Every) {
		if err := l.evictOver(l.ctx); err != nil && l.ctx.Err() == nil {
			l.Log.Error("evicting layers failed; this is tried again", "limit", l.Cache.MaxBytes, "error", err)
		}
	}
}

// evictOver evicts unused layers until the limit is kept.
func (l *Set) evictOver(ctx context.Context) error {
	total, candidates := l.allocated()
	if total > l.Cache.MaxBytes {
		l.over.Store(true)
		freed, err := l.evictUntil(ctx, candidates, total-l.Cache.MaxBytes)
		l.over.Store(total-freed > l.Cache.MaxBytes)
		return err
	}
	l.over.Store(false)
	return nil
}

// Evict evicts all layers that no container uses, whatever the limit is.
func (l *Set) Evict(ctx context.Context) error {
	total, candidates := l.allocated()
	_, err := l.evictUntil(ctx, candidates, total)
	return err
}

// evictUntil evicts those of the candidates that no container uses, in their order,
// until so many bytes are freed.
func (l *Set) evictUntil(ctx context.Context, candidates []digest.Digest, want int64) (freed int64, err error) {
	uses, err := l.uses(ctx)
	if err != nil {
		return 0, err
	}
	var errs []error
	for _, c := range candidates {
		if freed >= want {
			break
		}
		if len(uses[c].Active) > 0 {
			continue // evict looks again, with the lock
		}
		errs = append(errs, l.with(ctx, c, func(layer *Layer) error {
			n, err := l.evict(ctx, layer)
			freed += n
			return err
		}))
	}
	return freed, errors.Join(errs...)
}

// allocated is what all layers take on disk, and which of them can be evicted, the
// longest unused first.
func (l *Set) allocated() (total int64, candidates []digest.Digest) {
	used := map[digest.Digest]time.Time{}
	for _, d := range l.all() {
		view, ok := l.view(d)
		if !ok || view.files == nil {
			continue
		}
		u, err := view.usage()
		if err != nil {
			l.Log.Warn("the disk usage of a layer is not known; it counts as none", "layer", d, "error", err)
			continue
		}
		total += u.Size
		if view.state == Ready && view.pins == 0 && view.serving.blob.Filled() > 0 {
			used[d] = view.used
			candidates = append(candidates, d)
		}
	}
	slices.SortFunc(candidates, func(a, b digest.Digest) int { return used[a].Compare(used[b]) })
	return total, candidates
}

// evict makes a Ready layer that no process can have mounted Evicted, and returns how
// many bytes that has freed. The caller holds the lifecycle lock.
func (l *Set) evict(ctx context.Context, layer *Layer) (freed int64, err error) {
	if layer.state != Ready || l.pinned(layer) {
		return 0, nil
	}
	uses, err := l.uses(ctx)
	if err != nil || len(uses[layer.digest].Active) > 0 {
		return 0, err
	}
	before, err := layer.usage()
	if err != nil {
		return 0, err
	}
	if err := l.closeBlob(layer); err != nil {
		if errors.Is(err, ondemand.ErrBusy) {
			err = nil // a process has it mounted; the layer is leaving
		}
		return 0, err
	}
	if err := l.empty(layer); err != nil {
		return 0, err
	}
	after, err := layer.usage()
	l.Log.Info("layer evicted: no container uses it", "layer", layer.digest, "bytes", before.Size-after.Size)
	return before.Size - after.Size, err
}

// empty deletes the blob of a layer, which closeBlob has closed, and makes the layer
// Evicted. The caller holds the lifecycle lock.
func (l *Set) empty(layer *Layer) error {
	err := layer.files.empty()
	l.become(layer, Evicted, layer.files, nil, nil)
	if err != nil {
		return fmt.Errorf("empty layer %s: %w", layer.digest, err)
	}
	return nil
}
