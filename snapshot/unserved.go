package snapshot

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/storage"
	"github.com/containerd/continuity"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
)

// Unserved is a layer whose mount nobody has answered for some time: everything
// that held the transport's descriptors had died. On fanotify reads of holes gave
// zeros meanwhile, which may be in the page cache of the old mount for good; on
// the other transports they gave EIO. The layer has a fresh mount for new
// containers. Those that run on the old one are named.
type Unserved struct {
	Layer     digest.Digest `json:"layer"`
	Transport string        `json:"transport"`
	Found     time.Time     `json:"found"` // when the next daemon started
	// Snapshots are the active snapshots on the layer at that time, by
	// containerd's keys, which end in the container's ID.
	Snapshots []string `json:"snapshots"`
}

// Reads is what a hole read as: "zeros" or "EIO".
func (u Unserved) Reads() string {
	if u.Transport == "fanotify" {
		return "zeros"
	}
	return "EIO"
}

const (
	unservedFile  = "unserved.json"
	abandonedFile = "abandoned" // see Abandon
)

// Abandon says that there is nobody any more who has served the mounts below root
// all the time. A daemon calls it before it hands what a new transport depends on to
// anybody who outlives it: if it dies before New has gone over the mounts, the next
// daemon takes over a transport that has not served them either, and must not
// believe them. OpenLayers heeds it, and New takes it back.
func Abandon(root string) error {
	return os.WriteFile(filepath.Join(root, abandonedFile), nil, 0o600)
}

func isAbandoned(root string) bool {
	_, err := os.Lstat(filepath.Join(root, abandonedFile))
	return !errors.Is(err, os.ErrNotExist)
}

// endAbandoned takes Abandon back.
func endAbandoned(root string) error {
	err := os.Remove(filepath.Join(root, abandonedFile))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}

// findUnserved adds what has been replaced since the last time to what earlier
// starts found, and names the snapshots concerned. What cannot be written is kept
// for the next time. The caller holds s.unserved.
func (s *Snapshotter) findUnserved(ctx context.Context) (list []Unserved, err error) {
	if list, err = s.readUnserved(); err != nil {
		return nil, err
	}
	uses := map[digest.Digest]use{}
	replaced := s.layers.takeReplaced()
	if len(replaced) > 0 {
		if uses, err = s.uses(ctx); err != nil {
			s.log.Error("the containers on mounts that were not served are not known", "error", err)
		}
	}
	for _, layer := range replaced {
		u := Unserved{layer, s.layers.Transport.Name(), time.Now().UTC(), uses[layer].snapshots}
		s.log.Error("a mount was not served for some time: containers on it may have read "+u.Reads()+" in place of holes; restart them",
			"layer", layer, "transport", u.Transport, "snapshots", u.Snapshots)
		s.unwritten = append(s.unwritten, u)
	}
	list = append(list, s.unwritten...)
	if len(s.unwritten) > 0 {
		if err := s.writeUnserved(list); err != nil {
			return list, err
		}
		s.unwritten = nil
	}
	if !s.noted {
		err = endAbandoned(s.root)
		s.noted = err == nil
	}
	return list, err
}

// Unserved lists the layers that were not served, with those of the snapshots on
// them that are still there. A layer without any is forgotten.
func (s *Snapshotter) Unserved(ctx context.Context) ([]Unserved, error) {
	s.unserved.Lock()
	defer s.unserved.Unlock()
	list, err := s.findUnserved(ctx)
	if err != nil || len(list) == 0 {
		return list, err
	}
	left := []Unserved{}
	for _, u := range list {
		u.Snapshots = slices.DeleteFunc(u.Snapshots, func(key string) bool {
			_, err := s.Stat(ctx, key)
			return err != nil
		})
		if len(u.Snapshots) > 0 {
			left = append(left, u)
		}
	}
	if len(left) == len(list) {
		return left, nil
	}
	return left, s.writeUnserved(left)
}

func (s *Snapshotter) readUnserved() (list []Unserved, err error) {
	b, err := os.ReadFile(filepath.Join(s.root, unservedFile))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(b, &list); err != nil {
		s.log.Error("the list of layers that were not served is damaged and begun anew", "error", err)
		return nil, nil
	}
	return list, nil
}

func (s *Snapshotter) writeUnserved(list []Unserved) error {
	b, err := json.Marshal(list)
	if err != nil {
		return err
	}
	return continuity.AtomicWriteFile(filepath.Join(s.root, unservedFile), b, 0o600)
}

// uses tells what the snapshots make of each layer.
func (s *Snapshotter) uses(ctx context.Context) (uses map[digest.Digest]use, err error) {
	uses = map[digest.Digest]use{}
	err = s.ms.WithTransaction(ctx, false, func(ctx context.Context) error {
		all := map[string]snapshots.Info{}
		err := storage.WalkInfo(ctx, func(_ context.Context, info snapshots.Info) error {
			all[info.Name] = info
			return nil
		})
		if err != nil && !errdefs.IsNotFound(err) { // there has never been a snapshot
			return err
		}
		for _, info := range all {
			if t, ok := lazyTarget(info.Labels); ok {
				u := uses[t.Layer]
				u.stands, u.from = true, t
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
					u.snapshots = append(u.snapshots, key)
					uses[t.Layer] = u
				}
			}
		}
		return nil
	})
	return uses, err
}
