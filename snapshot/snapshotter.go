package snapshot

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"sync"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/storage"
	"github.com/containerd/continuity/fs"

	"github.com/lacuna-snapshotter/lacuna/snapshot/dirs"
	"github.com/lacuna-snapshotter/lacuna/snapshot/layer"
)

// Snapshotter implements containerd's snapshots.Snapshotter and Cleaner.
type Snapshotter struct {
	ms     *storage.MetaStore
	layers *layer.Set
	dirs   *dirs.Dirs

	closing sync.Once
	closed  error
}

var (
	_ snapshots.Snapshotter = (*Snapshotter)(nil)
	_ snapshots.Cleaner     = (*Snapshotter)(nil)
)

// New opens the metadata below the layers' root and starts the layers. From then on
// they belong to the Snapshotter, and Close closes them.
func New(ctx context.Context, layers *layer.Set) (*Snapshotter, error) {
	d := layers.Dirs()
	ms, err := storage.NewMetaStore(filepath.Join(d.Root(), "metadata.db"))
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", filepath.Join(d.Root(), "metadata.db"), err)
	}
	s := &Snapshotter{ms: ms, layers: layers, dirs: d}
	if err := layers.Start(ctx, s.uses); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

func (s *Snapshotter) dir(id string) string { return filepath.Join(s.dirs.Root(), dirs.Snapshots, id) }

func (s *Snapshotter) upper(id string) string { return filepath.Join(s.dir(id), "fs") }

func (s *Snapshotter) work(id string) string { return filepath.Join(s.dir(id), "work") }

// Stat implements snapshots.Snapshotter.
func (s *Snapshotter) Stat(ctx context.Context, key string) (info snapshots.Info, err error) {
	err = s.ms.WithTransaction(ctx, false, func(ctx context.Context) error {
		_, info, _, err = storage.GetInfo(ctx, key)
		return err
	})
	return info, err
}

// Update implements snapshots.Snapshotter. Our own labels stay as they are.
func (s *Snapshotter) Update(ctx context.Context, info snapshots.Info, fieldpaths ...string) (updated snapshots.Info, err error) {
	err = s.ms.WithTransaction(ctx, true, func(ctx context.Context) error {
		_, old, _, err := storage.GetInfo(ctx, info.Name)
		if err != nil {
			return err
		}
		info.Labels = without(info.Labels)
		for k, v := range old.Labels {
			if isOurs(k) {
				info.Labels[k] = v
			}
		}
		updated, err = storage.UpdateInfo(ctx, info, fieldpaths...)
		return err
	})
	return updated, err
}

// Walk implements snapshots.Snapshotter.
func (s *Snapshotter) Walk(ctx context.Context, fn snapshots.WalkFunc, filters ...string) error {
	return s.ms.WithTransaction(ctx, false, func(ctx context.Context) error {
		return storage.WalkInfo(ctx, fn, filters...)
	})
}

// Usage implements snapshots.Snapshotter. For a lazy snapshot it is what the layer has
// allocated on disk so far.
func (s *Snapshotter) Usage(ctx context.Context, key string) (usage snapshots.Usage, err error) {
	var id string
	var info snapshots.Info
	err = s.ms.WithTransaction(ctx, false, func(ctx context.Context) error {
		id, info, usage, err = storage.GetInfo(ctx, key)
		return err
	})
	if err != nil {
		return snapshots.Usage{}, err
	}
	if t, ok := lazyTarget(info.Labels); ok {
		return s.layers.Usage(t.Layer)
	}
	if info.Kind == snapshots.KindActive {
		du, err := fs.DiskUsage(ctx, s.upper(id))
		return snapshots.Usage(du), err
	}
	return usage, nil
}

// Commit implements snapshots.Snapshotter. The directory is measured before the write
// transaction, since all other writers wait for that.
func (s *Snapshotter) Commit(ctx context.Context, name, key string, opts ...snapshots.Opt) error {
	var id string
	err := s.ms.WithTransaction(ctx, false, func(ctx context.Context) (err error) {
		id, _, _, err = storage.GetInfo(ctx, key)
		return err
	})
	if err != nil {
		return err
	}
	du, err := fs.DiskUsage(ctx, s.upper(id))
	if err != nil {
		return err
	}
	last := snapshots.Opt(ordinary)
	if isRemapped(name, key) {
		last = remapped
	}
	return s.ms.WithTransaction(ctx, true, func(ctx context.Context) error {
		_, err := storage.CommitActive(ctx, key, name, snapshots.Usage(du), append(opts[:len(opts):len(opts)], last)...)
		return err
	})
}

// Remove implements snapshots.Snapshotter. Files are removed by Cleanup.
func (s *Snapshotter) Remove(ctx context.Context, key string) error {
	return s.ms.WithTransaction(ctx, true, func(ctx context.Context) error {
		_, _, err := storage.Remove(ctx, key)
		return err
	})
}

// Close implements snapshots.Snapshotter. Mounts stay.
func (s *Snapshotter) Close() error {
	s.closing.Do(func() { s.closed = errors.Join(s.layers.Close(), s.ms.Close()) })
	return s.closed
}
