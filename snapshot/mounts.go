package snapshot

import (
	"context"
	"fmt"
	"strings"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/storage"
	"github.com/containerd/errdefs"
)

// Mounts implements snapshots.Snapshotter.
func (s *Snapshotter) Mounts(ctx context.Context, key string) ([]mount.Mount, error) {
	var snapshot storage.Snapshot
	var info snapshots.Info
	err := s.ms.WithTransaction(ctx, false, func(ctx context.Context) (err error) {
		if snapshot, err = storage.GetSnapshot(ctx, key); err != nil {
			return err
		}
		_, info, _, err = storage.GetInfo(ctx, key)
		return err
	})
	if err != nil {
		return nil, err
	}
	return s.mounts(snapshot, info)
}

// lower is the directory of a committed snapshot's files.
func (s *Snapshotter) lower(id string) (string, error) {
	layer, ok := s.lazy(id)
	if !ok {
		return s.upper(id), nil
	}
	path, err := s.layers.mountpoint(layer)
	if err != nil {
		return "", fmt.Errorf("layer %s: %w: %w", layer, err, errdefs.ErrUnavailable)
	}
	return path, nil
}

func (s *Snapshotter) mounts(snapshot storage.Snapshot, info snapshots.Info) ([]mount.Mount, error) {
	options := idMapping(info.Labels)
	active := snapshot.Kind == snapshots.KindActive
	if len(snapshot.ParentIDs) == 0 {
		mode := "ro"
		if active {
			mode = "rw"
		}
		return bind(s.upper(snapshot.ID), append(options, mode)), nil
	}
	lowers := make([]string, len(snapshot.ParentIDs))
	for i, id := range snapshot.ParentIDs {
		var err error
		if lowers[i], err = s.lower(id); err != nil {
			return nil, err
		}
	}
	if !active && len(lowers) == 1 {
		return bind(lowers[0], append(options, "ro")), nil
	}
	if active {
		options = append(options, "workdir="+s.work(snapshot.ID), "upperdir="+s.upper(snapshot.ID))
	}
	options = append(options, "lowerdir="+strings.Join(lowers, ":"))
	return []mount.Mount{{Type: "overlay", Source: "overlay", Options: options}}, nil
}

func bind(source string, options []string) []mount.Mount {
	return []mount.Mount{{Type: "bind", Source: source, Options: append(options, "rbind")}}
}

// idMapping are the options by which containerd maps the lower directories'
// owners into a user namespace.
func idMapping(labels map[string]string) (options []string) {
	if v, ok := labels[snapshots.LabelSnapshotUIDMapping]; ok {
		options = append(options, "uidmap="+v)
	}
	if v, ok := labels[snapshots.LabelSnapshotGIDMapping]; ok {
		options = append(options, "gidmap="+v)
	}
	return options
}
