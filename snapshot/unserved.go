package snapshot

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"sync"
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

// restored says that New has gone over all mounts.
func (s *Snapshotter) restored() {
	s.notices.mu.Lock()
	defer s.notices.mu.Unlock()
	s.notices.whole = true
	s.endAbandoned()
}

// endAbandoned takes Abandon back, when what it is for is done and written. The caller
// holds notices.mu.
func (s *Snapshotter) endAbandoned() {
	if !s.notices.whole || !s.notices.saved {
		return
	}
	if err := os.Remove(filepath.Join(s.root, abandonedFile)); err != nil && !errors.Is(err, os.ErrNotExist) {
		s.log.Error("the next start will mount every layer again", "error", err)
	}
}

// notices are the layers that were not served, in unserved.json too.
type notices struct {
	mu    sync.Mutex
	list  []Unserved
	saved bool // the file has the list
	whole bool // New has gone over all mounts
}

// loadUnserved brings back what earlier starts found. A file that cannot be read
// stops nothing.
func (s *Snapshotter) loadUnserved() {
	list, err := s.readUnserved()
	if err != nil {
		s.log.Error("reading which mounts were not served; what earlier starts found is lost", "error", err)
	}
	s.notices.list, s.notices.saved = list, err == nil
}

// noteUnserved adds a layer whose mount was not served, before that is replaced: a
// daemon that dies, or finds no room to write, must not take the mount and the notice
// along.
func (s *Snapshotter) noteUnserved(ctx context.Context, layer digest.Digest) error {
	uses, err := s.uses(ctx)
	if err != nil {
		return err
	}
	keys := slices.Sorted(slices.Values(uses[layer].snapshots))
	u := Unserved{layer, s.layers.Transport.Name(), time.Now().UTC(), keys}
	s.log.Error("a mount was not served for some time: containers on it may have read "+u.Reads()+" in place of holes; restart them",
		"layer", layer, "transport", u.Transport, "snapshots", u.Snapshots)
	s.notices.mu.Lock()
	defer s.notices.mu.Unlock()
	if slices.ContainsFunc(s.notices.list, func(o Unserved) bool { return o.Layer == layer && slices.Equal(o.Snapshots, keys) }) {
		return nil // replacing it is tried again
	}
	s.notices.list = append(s.notices.list, u)
	s.saveUnserved()
	return nil
}

// Unserved lists the layers that were not served, with those of the snapshots on
// them that are still there. A layer without any is forgotten.
func (s *Snapshotter) Unserved(ctx context.Context) ([]Unserved, error) {
	s.notices.mu.Lock()
	defer s.notices.mu.Unlock()
	left := []Unserved{}
	for _, u := range s.notices.list {
		u.Snapshots = slices.DeleteFunc(slices.Clone(u.Snapshots), func(key string) bool {
			_, err := s.Stat(ctx, key)
			return errdefs.IsNotFound(err)
		})
		if len(u.Snapshots) > 0 {
			left = append(left, u)
		}
	}
	if len(left) != len(s.notices.list) || !s.notices.saved {
		s.notices.list = left
		s.saveUnserved()
	}
	return slices.Clone(left), nil
}

// saveUnserved writes the list. Where that fails, as on a full disk, the daemon has it,
// and tries again when it is asked. The caller holds notices.mu.
func (s *Snapshotter) saveUnserved() {
	b, err := json.Marshal(s.notices.list)
	if err == nil {
		err = continuity.AtomicWriteFile(filepath.Join(s.root, unservedFile), b, 0o600)
	}
	s.notices.saved = err == nil
	if err != nil {
		s.log.Error("writing which mounts were not served; the next start will not know", "error", err)
	}
	s.endAbandoned()
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
