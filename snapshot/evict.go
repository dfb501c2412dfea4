package snapshot

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
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

// A layer that no snapshot uses may be parked: unmounted and emptied. It stays
// known, and is opened again when a snapshot asks for its mountpoint. Only whole
// layers that nothing can have mounted are emptied: on fanotify a reader that was
// let through cannot be told from one that has read, so no extent of a mounted
// blob can be punched with certainty.

// evict keeps the limit as long as the daemon runs. Users tells which layers
// something may have mounted.
func (l *Layers) evict(users func(context.Context) (map[digest.Digest][]string, error)) {
	defer l.work.Done()
	if l.Cache.MaxBytes == 0 {
		return
	}
	for sleep(l.ctx, l.Cache.Every) {
		if err := l.evictOnce(users); err != nil && l.ctx.Err() == nil {
			l.Log.Error("evicting layers", "error", err)
		}
	}
}

// evictOnce empties unused layers until the limit is kept.
func (l *Layers) evictOnce(users func(context.Context) (map[digest.Digest][]string, error)) error {
	total, candidates := l.allocated()
	l.over.Store(total > l.Cache.MaxBytes)
	if total <= l.Cache.MaxBytes {
		return nil
	}
	slices.SortFunc(candidates, func(a, b candidate) int { return a.used.Compare(b.used) })
	var errs []error
	for _, c := range candidates {
		if total <= l.Cache.MaxBytes {
			break
		}
		freed, err := l.park(c.layer, users)
		if err != nil {
			errs = append(errs, err)
		}
		total -= freed
	}
	l.over.Store(total > l.Cache.MaxBytes)
	return errors.Join(errs...)
}

// candidate is a layer that holds something.
type candidate struct {
	layer *Layer
	used  time.Time
}

// allocated is what all layers take, and which of them hold something.
func (l *Layers) allocated() (total int64, list []candidate) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, layer := range l.layers {
		u, err := layer.usage()
		if err != nil {
			l.Log.Warn("usage of a layer", "layer", layer.state.Layer, "error", err)
			continue
		}
		total += u.Size
		if layer.blob != nil && layer.err == nil && l.pins[layer.state.Layer] == 0 && layer.blob.Filled() > 0 {
			list = append(list, candidate{layer, layer.used})
		}
	}
	return total, list
}

// park unmounts and empties a layer, if no snapshot uses it, and returns what
// that has freed. The lock is held over the look and the unmount: a snapshot is
// known before its mountpoints are asked for, so whoever asks later finds the
// layer parked and opens it again.
func (l *Layers) park(layer *Layer, users func(context.Context) (map[digest.Digest][]string, error)) (freed int64, err error) {
	l.parking.Lock()
	defer l.parking.Unlock()
	using, err := users(l.ctx)
	if err != nil {
		return 0, err
	}
	if len(using[layer.state.Layer]) > 0 {
		return 0, nil
	}
	before, err := layer.usage()
	if err != nil {
		return 0, err
	}
	parked := l.layer(layer.state)
	parked.used = layer.used
	l.mu.Lock()
	ours := l.pins[layer.state.Layer] == 0 && l.layers[layer.state.Layer] == layer
	if ours {
		l.layers[layer.state.Layer] = parked
	}
	l.mu.Unlock()
	if !ours {
		return 0, nil
	}
	putBack := func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.layers[layer.state.Layer] = layer
	}
	if layer.mounted() {
		// Not lazily: a mount that is in use after all stays.
		err := unix.Unmount(layer.target, unix.UMOUNT_NOFOLLOW)
		if err != nil {
			putBack()
		}
		if errors.Is(err, unix.EBUSY) {
			return 0, nil
		}
		if err != nil {
			return 0, fmt.Errorf("unmount %s: %w", layer.target, err)
		}
	}
	close(layer.gone)
	err = errors.Join(l.Transport.Detach(layer.blob), layer.blob.Close(), l.Transport.Remove(layer.key()))
	layer.source.drop()
	for _, name := range []string{"blob.spans", "blob.durable", "blob"} { // bits before bytes
		if rmErr := os.Remove(layer.path(name)); rmErr != nil && !errors.Is(rmErr, os.ErrNotExist) {
			err = errors.Join(err, rmErr)
		}
	}
	if err != nil {
		return 0, fmt.Errorf("empty layer %s: %w", layer.state.Layer, err)
	}
	after, err := parked.usage()
	l.Log.Info("evicted a layer that no container uses", "layer", layer.state.Layer, "bytes", before.Size-after.Size)
	return before.Size - after.Size, err
}

// unpark opens a parked layer again, empty. The caller holds the parking lock.
func (l *Layers) unpark(layer *Layer) (*Layer, error) {
	fresh := l.layer(layer.state)
	if err := l.open(fresh); err != nil {
		return nil, fmt.Errorf("mount layer %s again: %w", layer.state.Layer, err)
	}
	return fresh, nil
}
