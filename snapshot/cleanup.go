package snapshot

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/containerd/v2/core/snapshots/storage"
	"github.com/opencontainers/go-digest"
)

// Cleanup implements snapshots.Cleaner: it removes the directories of removed
// snapshots, then the layers that no snapshot stands for.
func (s *Snapshotter) Cleanup(ctx context.Context) error {
	var errs []error
	used := map[digest.Digest]bool{}
	var stale []string
	// A write transaction keeps snapshots from coming up while we look.
	err := s.ms.WithTransaction(ctx, true, func(ctx context.Context) error {
		ids, err := storage.IDMap(ctx)
		if err != nil {
			return err
		}
		dirs, err := os.ReadDir(filepath.Join(s.root, "snapshots"))
		if err != nil {
			return err
		}
		for _, d := range dirs {
			if _, ok := ids[d.Name()]; ok {
				if layer, ok := s.lazy(d.Name()); ok {
					used[layer] = true
				}
			} else if !strings.HasPrefix(d.Name(), halfMade) {
				stale = append(stale, s.dir(d.Name()))
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, dir := range stale {
		errs = append(errs, os.RemoveAll(dir))
	}
	return errors.Join(append(errs, s.layers.removeUnused(used))...)
}
