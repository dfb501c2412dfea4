package snapshot

import (
	"context"
	"errors"
	"os"
	"path/filepath"

	"github.com/containerd/containerd/v2/core/snapshots/storage"
	"github.com/containerd/errdefs"

	"github.com/lacuna-snapshotter/lacuna/snapshot/dirs"
)

// Cleanup implements snapshots.Cleaner: it removes the directories of removed
// snapshots, then the layers that no snapshot stands for.
func (s *Snapshotter) Cleanup(ctx context.Context) error {
	err := s.discardStale(ctx)
	return errors.Join(err, s.layers.RemoveUnused(ctx))
}

// discardStale moves the directories of removed snapshots to the trash. The write
// transaction keeps new snapshots from being created meanwhile.
func (s *Snapshotter) discardStale(ctx context.Context) error {
	return s.ms.WithTransaction(ctx, true, func(ctx context.Context) error {
		ids, err := storage.IDMap(ctx)
		if err != nil && !errdefs.IsNotFound(err) { // before the first snapshot
			return err
		}
		entries, err := os.ReadDir(filepath.Join(s.dirs.Root(), dirs.Snapshots))
		if err != nil {
			return err
		}
		var errs []error
		for _, e := range entries {
			if _, ok := ids[e.Name()]; !ok && e.Name() != dirs.MountsName {
				errs = append(errs, s.dirs.Discard(s.dir(e.Name())))
			}
		}
		return errors.Join(errs...)
	})
}
