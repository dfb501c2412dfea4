package snapshot

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/storage"
	"github.com/containerd/continuity/fs"
)

// Snapshotter implements containerd's snapshots.Snapshotter and Cleaner.
type Snapshotter struct {
	root   string
	ms     *storage.MetaStore
	layers *Layers
	log    *slog.Logger

	unserved sync.Mutex // guards unserved.json

	closing sync.Once
	closed  error
}

var (
	_ snapshots.Snapshotter = (*Snapshotter)(nil)
	_ snapshots.Cleaner     = (*Snapshotter)(nil)
)

// New opens the snapshotter's directory and brings back the layers of an
// earlier run. It owns layers, which it closes.
func New(ctx context.Context, root string, layers *Layers, log *slog.Logger) (*Snapshotter, error) {
	if err := os.MkdirAll(filepath.Join(root, "snapshots"), 0o700); err != nil {
		return nil, err
	}
	ms, err := storage.NewMetaStore(filepath.Join(root, "metadata.db"))
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", filepath.Join(root, "metadata.db"), err)
	}
	s := &Snapshotter{root: root, ms: ms, layers: layers, log: log}
	if err := s.removeHalfMade(); err != nil {
		return nil, errors.Join(err, ms.Close())
	}
	if err := layers.Restore(ctx); err != nil {
		return nil, errors.Join(err, ms.Close())
	}
	if err := s.findUnserved(ctx); err != nil {
		return nil, errors.Join(err, layers.Close(), ms.Close())
	}
	layers.work.Add(1)
	go layers.evict(s.users)
	return s, nil
}

// removeHalfMade removes what a Prepare of a killed daemon left.
func (s *Snapshotter) removeHalfMade() error {
	left, err := filepath.Glob(filepath.Join(s.root, "snapshots", halfMade+"*"))
	if err != nil {
		return err
	}
	for _, dir := range left {
		err = errors.Join(err, os.RemoveAll(dir))
	}
	return err
}

func (s *Snapshotter) dir(id string) string { return filepath.Join(s.root, "snapshots", id) }

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

// Update implements snapshots.Snapshotter.
func (s *Snapshotter) Update(ctx context.Context, info snapshots.Info, fieldpaths ...string) (updated snapshots.Info, err error) {
	err = s.ms.WithTransaction(ctx, true, func(ctx context.Context) error {
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

// Usage implements snapshots.Snapshotter. Of a lazy snapshot it is what the
// layer has allocated on disk by now.
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
	if layer, ok := s.lazy(id); ok {
		return s.layers.usage(layer)
	}
	if info.Kind == snapshots.KindActive {
		du, err := fs.DiskUsage(ctx, s.upper(id))
		return snapshots.Usage(du), err
	}
	return usage, nil
}

// Commit implements snapshots.Snapshotter.
func (s *Snapshotter) Commit(ctx context.Context, name, key string, opts ...snapshots.Opt) error {
	return s.ms.WithTransaction(ctx, true, func(ctx context.Context) error {
		id, _, _, err := storage.GetInfo(ctx, key)
		if err != nil {
			return err
		}
		du, err := fs.DiskUsage(ctx, s.upper(id))
		if err != nil {
			return err
		}
		_, err = storage.CommitActive(ctx, key, name, snapshots.Usage(du), opts...)
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
