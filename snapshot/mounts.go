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

// chain is a snapshot with its parents, the nearest first.
type chain []link

type link struct {
	id   string
	info snapshots.Info
}

// readChain reads a snapshot and its parents, in a transaction.
func readChain(ctx context.Context, key string) (c chain, err error) {
	for key != "" {
		id, info, _, err := storage.GetInfo(ctx, key)
		if err != nil {
			return nil, err
		}
		c = append(c, link{id, info})
		key = info.Parent
	}
	return c, nil
}

// Mounts implements snapshots.Snapshotter.
func (s *Snapshotter) Mounts(ctx context.Context, key string) ([]mount.Mount, error) {
	var c chain
	err := s.ms.WithTransaction(ctx, false, func(ctx context.Context) (err error) {
		c, err = readChain(ctx, key)
		return err
	})
	if err != nil {
		return nil, err
	}
	if c[0].info.Kind == snapshots.KindCommitted {
		return nil, fmt.Errorf("snapshot %s is committed: %w", key, errdefs.ErrFailedPrecondition)
	}
	return s.mounts(ctx, c)
}

// lower is the directory of a committed snapshot's files.
func (s *Snapshotter) lower(ctx context.Context, of link) (string, error) {
	t, lazy := lazyTarget(of.info.Labels)
	if !lazy {
		return s.upper(of.id), nil
	}
	path, err := s.layers.Mountpoint(ctx, t)
	if err != nil {
		return "", fmt.Errorf("layer %s of %s: %w: %w", t.Layer, t.Ref, err, errdefs.ErrUnavailable)
	}
	return path, nil
}

func (s *Snapshotter) mounts(ctx context.Context, c chain) ([]mount.Mount, error) {
	top, parents := c[0], c[1:]
	lowers := make([]string, len(parents))
	for i, p := range parents {
		var err error
		if lowers[i], err = s.lower(ctx, p); err != nil {
			return nil, err
		}
	}
	options, err := c.mapped()
	if err != nil {
		return nil, err
	}
	active := top.info.Kind == snapshots.KindActive
	switch {
	case len(lowers) == 0:
		mode := "ro"
		if active {
			mode = "rw"
		}
		return bind(s.upper(top.id), mode), nil
	case !active && len(lowers) == 1 && len(options) == 0:
		return bind(lowers[0], "ro"), nil
	case !active && len(lowers) == 1:
		// containerd does not id-map a read-only bind mount
		// (core/mount/mount_linux.go, 2.4.2), and an overlay without an upper
		// directory needs two lower ones: the view's own is empty.
		lowers = append(lowers, s.upper(top.id))
	}
	if active {
		options = append(options, "workdir="+s.work(top.id), "upperdir="+s.upper(top.id))
	}
	options = append(options, "lowerdir="+strings.Join(lowers, ":"))
	return []mount.Mount{{Type: "overlay", Source: "overlay", Options: options}}, nil
}

func bind(source, mode string) []mount.Mount {
	return []mount.Mount{{Type: "bind", Source: source, Options: []string{mode, "rbind"}}}
}
