package layer

import (
	"context"
	"errors"
	"maps"
	"os"
	"path/filepath"

	"github.com/lacuna-snapshotter/lacuna/snapshot/dirs"
)

// sweep removes what is below the root and belongs to no layer: what could not be
// removed before, or was not finished.
func (l *Set) sweep(ctx context.Context) error {
	return errors.Join(l.sweepLayers(ctx), l.sweepMountpoints(ctx), l.dirs.SweepNew(), l.dirs.EmptyTrash())
}

// sweepLayers discards the directories of layers that no layer of the table has.
func (l *Set) sweepLayers(ctx context.Context) error {
	entries, err := os.ReadDir(filepath.Join(l.Root, dirs.Layers))
	for _, e := range entries {
		f, _ := readFiles(l.Root, e.Name())
		err = errors.Join(err, l.with(ctx, f.Layer, func(layer *Layer) error {
			if layer.files != nil && layer.files.dir == f.dir {
				return nil
			}
			return l.dirs.Discard(f.dir)
		}))
	}
	return err
}

// sweepMountpoints removes the mountpoints that no layer has.
func (l *Set) sweepMountpoints(ctx context.Context) error {
	entries, err := os.ReadDir(filepath.Join(l.Root, dirs.Mounts))
	l.mu.Lock()
	owners := maps.Clone(l.mountpoints)
	l.mu.Unlock()
	for _, e := range entries {
		owners[e.Name()] = owners[e.Name()] // empty where no layer has it
	}
	for name, owner := range owners {
		err = errors.Join(err, l.with(ctx, owner, func(layer *Layer) error {
			if layer.files != nil && layer.files.Mountpoint == name {
				return nil
			}
			return l.removeMountpoint(name)
		}))
	}
	return err
}
