package layer

import (
	"errors"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"
)

// Cache is the policy of what may stay on the node's disk.
type Cache struct {
	// MaxBytes of disk that layers may take; zero is no limit. It is kept by
	// evicting layers that no container uses, the longest unused first. What
	// containers use stays and is filled as they read, over the limit if need
	// be; then nothing is filled ahead.
	MaxBytes int64
	// Every is how often it is looked at.
	Every time.Duration
}

// A layer that no container uses may be evicted: unmounted and emptied. It stays
// known, and is opened again when a snapshot asks for its mountpoint. Only whole
// layers that nothing can have mounted are emptied: on fanotify a reader that was
// let through cannot be told from one that has read, so no extent of a mounted
// blob can be punched with certainty.

// keepLimit keeps the limit as long as the daemon runs.
func (l *Set) keepLimit() {
	if l.Cache.MaxBytes == 0 {
		return
	}
	for sleep(l.ctx, l.Cache.Every) {
		if err := l.evictOnce(); err != nil && l.ctx.Err() == nil {
			l.Log.Error("evicting layers", "error", err)
		}
	}
}

// evictOnce empties unused layers until the limit is kept.
func (l *Set) evictOnce() error {
	total, candidates := l.allocated()
	if l.over.Store(total > l.Cache.MaxBytes); total <= l.Cache.MaxBytes {
		return nil
	}
	uses, err := l.uses(l.ctx)
	if err != nil {
		return err
	}
	var errs []error
	for _, c := range candidates {
		if total <= l.Cache.MaxBytes {
			break
		}
		if len(uses[c].Active) > 0 {
			continue // cheaply; evict looks again
		}
		err := l.with(l.ctx, c, func(layer *Layer) error {
			freed, err := l.evict(layer)
			total -= freed
			return err
		})
		errs = append(errs, err)
	}
	l.over.Store(total > l.Cache.MaxBytes)
	return errors.Join(errs...)
}

// allocated is what all layers take, and which of them hold something, the longest
// unused first.
func (l *Set) allocated() (total int64, candidates []digest.Digest) {
	used := map[digest.Digest]time.Time{}
	for _, d := range l.all() {
		view, ok := l.snapshotOf(d)
		if !ok || view.files == nil {
			continue
		}
		u, err := view.usage()
		if err != nil {
			l.Log.Warn("usage of a layer", "layer", d, "error", err)
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
