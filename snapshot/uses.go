package snapshot

import (
	"context"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/storage"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/lacuna-snapshotter/lacuna/snapshot/layer"
)

// uses tells, by layer, which snapshots stand for it and which are on it.
func (s *Snapshotter) uses(ctx context.Context) (uses map[digest.Digest]layer.Use, err error) {
	uses = map[digest.Digest]layer.Use{}
	err = s.ms.WithTransaction(ctx, false, func(ctx context.Context) error {
		all := map[string]snapshots.Info{}
		err := storage.WalkInfo(ctx, func(_ context.Context, info snapshots.Info) error {
			all[info.Name] = info
			return nil
		})
		if err != nil && !errdefs.IsNotFound(err) { // before the first snapshot
			return err
		}
		for _, info := range all {
			if t, ok := lazyTarget(info.Labels); ok {
				u := uses[t.Layer]
				u.Needed, u.From = true, t
				uses[t.Layer] = u
			}
		}
		for key, info := range all {
			if info.Kind == snapshots.KindCommitted {
				continue
			}
			for parent := info.Parent; parent != ""; parent = all[parent].Parent {
				if t, ok := lazyTarget(all[parent].Labels); ok {
					u := uses[t.Layer]
					u.Active = append(u.Active, key)
					uses[t.Layer] = u
				}
			}
		}
		return nil
	})
	return uses, err
}
