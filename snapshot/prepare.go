package snapshot

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/storage"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
)

// Prepare implements snapshots.Snapshotter.
func (s *Snapshotter) Prepare(ctx context.Context, key, parent string, opts ...snapshots.Opt) ([]mount.Mount, error) {
	var info snapshots.Info
	for _, opt := range opts {
		if err := opt(&info); err != nil {
			return nil, err
		}
	}
	if want, ok := parseExtraction(info.Labels); ok {
		err := s.prepareLazy(ctx, want, key, parent, opts)
		if err == nil {
			return nil, fmt.Errorf("layer %s is prepared as %s: %w", want.Layer, want.name, errdefs.ErrAlreadyExists)
		}
		if ctx.Err() != nil {
			return nil, err
		}
		s.layers.fallBack(want, err)
	}
	return s.create(ctx, snapshots.KindActive, key, parent, opts)
}

// View implements snapshots.Snapshotter.
func (s *Snapshotter) View(ctx context.Context, key, parent string, opts ...snapshots.Opt) ([]mount.Mount, error) {
	return s.create(ctx, snapshots.KindView, key, parent, opts)
}

// prepareLazy mounts the layer and commits the snapshot that containerd wants
// to see.
func (s *Snapshotter) prepareLazy(ctx context.Context, want extraction, key, parent string, opts []snapshots.Opt) error {
	release, err := s.layers.Ensure(ctx, want.Target)
	if err != nil {
		return err
	}
	defer release()
	err = s.ms.WithTransaction(ctx, true, func(ctx context.Context) error {
		created, err := storage.CreateSnapshot(ctx, snapshots.KindActive, key, parent, opts...)
		if err != nil {
			return err
		}
		// The name of the layer is there before the snapshot is.
		if err := os.MkdirAll(s.dir(created.ID), 0o700); err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(s.dir(created.ID), layerFile), []byte(want.Layer), 0o600); err != nil {
			return err
		}
		usage, err := s.layers.usage(want.Layer)
		if err != nil {
			return err
		}
		_, err = storage.CommitActive(ctx, key, want.name, usage, opts...)
		return err
	})
	if errors.Is(err, errdefs.ErrAlreadyExists) {
		if _, statErr := s.Stat(ctx, want.name); statErr == nil {
			return nil // another Prepare was faster
		}
	}
	return err
}

// layerFile, in a lazy snapshot's directory, holds the layer's digest.
const layerFile = "layer"

// lazy returns the layer of a lazy snapshot.
func (s *Snapshotter) lazy(id string) (digest.Digest, bool) {
	b, err := os.ReadFile(filepath.Join(s.dir(id), layerFile))
	return digest.Digest(b), err == nil
}

// halfMade begins the names of directories whose snapshot is not there yet.
const halfMade = "new-"

// create makes an ordinary snapshot.
func (s *Snapshotter) create(ctx context.Context, kind snapshots.Kind, key, parent string, opts []snapshots.Opt) ([]mount.Mount, error) {
	var created storage.Snapshot
	temp, err := os.MkdirTemp(filepath.Join(s.root, "snapshots"), halfMade)
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(temp) // it is gone after the rename
	if err := os.Mkdir(filepath.Join(temp, "fs"), 0o755); err != nil {
		return nil, err
	}
	if kind == snapshots.KindActive {
		if err := os.Mkdir(filepath.Join(temp, "work"), 0o711); err != nil {
			return nil, err
		}
	}
	var info snapshots.Info
	err = s.ms.WithTransaction(ctx, true, func(ctx context.Context) error {
		if created, err = storage.CreateSnapshot(ctx, kind, key, parent, opts...); err != nil {
			return err
		}
		if _, info, _, err = storage.GetInfo(ctx, key); err != nil {
			return err
		}
		if len(created.ParentIDs) > 0 {
			if err := s.copyOwner(created.ParentIDs[0], filepath.Join(temp, "fs")); err != nil {
				return err
			}
		}
		return os.Rename(temp, s.dir(created.ID))
	})
	if err != nil {
		return nil, err
	}
	mounts, err := s.mounts(created, info)
	if err != nil {
		return nil, errors.Join(err, s.Remove(ctx, key))
	}
	return mounts, nil
}

// copyOwner gives the new root directory the owner of the parent's.
func (s *Snapshotter) copyOwner(parentID, dir string) error {
	parent, err := s.lower(parentID)
	if err != nil {
		return err
	}
	info, err := os.Stat(parent)
	if err != nil {
		return err
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return fmt.Errorf("stat %s: unexpected type", parent)
	}
	return os.Lchown(dir, int(st.Uid), int(st.Gid))
}
