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
			return nil, fmt.Errorf("layer %s is ready as snapshot %s: %w", want.Layer, want.name, errdefs.ErrAlreadyExists)
		}
		if ctx.Err() != nil {
			return nil, err
		}
		s.layers.LeftToContainerd(want.Target, err)
	}
	return s.create(ctx, snapshots.KindActive, key, parent, opts)
}

// View implements snapshots.Snapshotter.
func (s *Snapshotter) View(ctx context.Context, key, parent string, opts ...snapshots.Opt) ([]mount.Mount, error) {
	return s.create(ctx, snapshots.KindView, key, parent, opts)
}

// prepareLazy mounts the layer and commits the snapshot that containerd looks for: one
// with the wanted chain ID in its label and with the wanted parent. Its name may be any;
// it is the chain ID, except where a snapshot of that name has another parent, as when
// another namespace of containerd has unpacked the layers below.
func (s *Snapshotter) prepareLazy(ctx context.Context, want extraction, key, parent string, opts []snapshots.Opt) error {
	release, err := s.layers.Ensure(ctx, want.Target)
	if err != nil {
		return err
	}
	defer release()
	usage, err := s.layers.Usage(want.Layer)
	if err != nil {
		return err
	}
	opts = append(opts[:len(opts):len(opts)], lazy(want.Target))
	return s.ms.WithTransaction(ctx, true, func(ctx context.Context) error {
		free := ""
		for _, name := range []string{want.name, want.name + " on " + digest.FromString(parent).Encoded()} {
			_, there, _, err := storage.GetInfo(ctx, name)
			switch {
			case err == nil:
				if there.Kind == snapshots.KindCommitted && there.Parent == parent && there.Labels[snapshots.LabelSnapshotRef] == want.name {
					return nil // by an earlier or a concurrent pull
				}
			case !errdefs.IsNotFound(err):
				return err
			case free == "":
				free = name
			}
		}
		if free == "" {
			return fmt.Errorf("both names for a snapshot of chain %s on parent %q belong to snapshots with other parents: %w", want.name, parent, errdefs.ErrFailedPrecondition)
		}
		if _, err := storage.CreateSnapshot(ctx, snapshots.KindActive, key, parent, opts...); err != nil {
			return err
		}
		_, err := storage.CommitActive(ctx, key, free, usage, opts...)
		return err
	})
}

// create makes an ordinary snapshot.
func (s *Snapshotter) create(ctx context.Context, kind snapshots.Kind, key, parent string, opts []snapshots.Opt) ([]mount.Mount, error) {
	opts = append(opts[:len(opts):len(opts)], ordinary)
	uid, gid, err := s.rootOwner(ctx, parent, opts)
	if err != nil {
		return nil, err
	}
	temp, done, err := s.dirs.Temp()
	if err != nil {
		return nil, err
	}
	defer done()
	if err := makeUpper(temp, kind, uid, gid); err != nil {
		return nil, err
	}
	var c chain
	err = s.ms.WithTransaction(ctx, true, func(ctx context.Context) error {
		created, err := storage.CreateSnapshot(ctx, kind, key, parent, opts...)
		if err != nil {
			return err
		}
		if c, err = readChain(ctx, key); err != nil {
			return err
		}
		// A transaction that failed may have left a directory with this ID, which is
		// given again: Install replaces it.
		return s.dirs.Install(temp, s.dir(created.ID))
	})
	if err != nil {
		return nil, err
	}
	mounts, err := s.mounts(ctx, c)
	if err != nil {
		return nil, errors.Join(err, s.Remove(context.WithoutCancel(ctx), key))
	}
	return mounts, nil
}

// makeUpper makes the directories of an ordinary snapshot. Their modes do not
// depend on the process's umask.
func makeUpper(dir string, kind snapshots.Kind, uid, gid int) error {
	type sub struct {
		name string
		mode os.FileMode
	}
	subs := []sub{{"fs", 0o755}}
	if kind == snapshots.KindActive {
		subs = append(subs, sub{"work", 0o711})
	}
	for _, d := range subs {
		path := filepath.Join(dir, d.name)
		if err := errors.Join(os.Mkdir(path, 0o700), os.Chmod(path, d.mode)); err != nil {
			return err
		}
	}
	return os.Lchown(filepath.Join(dir, "fs"), uid, gid)
}

// rootOwner is the owner of a new snapshot's root directory: the container's root where
// the snapshot has a mapping, else the owner of the parent's root directory.
func (s *Snapshotter) rootOwner(ctx context.Context, parent string, opts []snapshots.Opt) (uid, gid int, err error) {
	var info snapshots.Info
	for _, opt := range opts {
		if err := opt(&info); err != nil {
			return 0, 0, err
		}
	}
	m, err := parseMapping(info.Labels)
	if err != nil {
		return 0, 0, err
	}
	if m != nil {
		uid, gid = m.root()
		return uid, gid, nil
	}
	if parent == "" {
		return 0, 0, nil
	}
	var of link
	err = s.ms.WithTransaction(ctx, false, func(ctx context.Context) error {
		id, info, _, err := storage.GetInfo(ctx, parent)
		of = link{id, info}
		return err
	})
	if errdefs.IsNotFound(err) {
		return 0, 0, nil // CreateSnapshot fails with this error
	}
	if err != nil {
		return 0, 0, err
	}
	if of.info.Kind != snapshots.KindCommitted {
		return 0, 0, nil // CreateSnapshot fails
	}
	dir, err := s.lower(ctx, of)
	if err != nil {
		return 0, 0, err
	}
	return owner(dir)
}

// owner returns the owner of a directory.
func owner(path string) (uid, gid int, err error) {
	info, err := os.Stat(path)
	if err != nil {
		return 0, 0, err
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return 0, 0, fmt.Errorf("stat %s: unexpected type", path)
	}
	return int(st.Uid), int(st.Gid), nil
}
