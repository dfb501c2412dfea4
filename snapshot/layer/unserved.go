package layer

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/containerd/continuity"
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
// believe them. Open heeds it, and New takes it back.
func Abandon(root string) error {
	return os.WriteFile(filepath.Join(root, abandonedFile), nil, 0o600)
}

func isAbandoned(root string) bool {
	_, err := os.Lstat(filepath.Join(root, abandonedFile))
	return !errors.Is(err, os.ErrNotExist)
}

// restored says that Start has gone over all mounts.
func (l *Set) restored() {
	l.notices.mu.Lock()
	defer l.notices.mu.Unlock()
	l.notices.whole = true
	l.endAbandoned()
}

// endAbandoned takes Abandon back, when what it is for is done and written. The caller
// holds notices.mu.
func (l *Set) endAbandoned() {
	if !l.notices.whole || !l.notices.saved {
		return
	}
	if err := os.Remove(filepath.Join(l.Root, abandonedFile)); err != nil && !errors.Is(err, os.ErrNotExist) {
		l.Log.Error("the next start will mount every layer again", "error", err)
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
func (l *Set) loadUnserved() {
	list, err := l.readUnserved()
	if err != nil {
		l.Log.Error("reading which mounts were not served; what earlier starts found is lost", "error", err)
	}
	l.notices.list, l.notices.saved = list, err == nil
}

// noteUnserved adds a layer whose mount was not served, before that is replaced: a
// daemon that dies, or finds no room to write, must not take the mount and the notice
// along.
func (l *Set) noteUnserved(ctx context.Context, layer digest.Digest) error {
	uses, err := l.uses(ctx)
	if err != nil {
		return err
	}
	keys := slices.Sorted(slices.Values(uses[layer].Active))
	u := Unserved{layer, l.Transport.Name(), time.Now().UTC(), keys}
	l.Log.Error("a mount was not served for some time: containers on it may have read "+u.Reads()+" in place of holes; restart them",
		"layer", layer, "transport", u.Transport, "snapshots", u.Snapshots)
	l.notices.mu.Lock()
	defer l.notices.mu.Unlock()
	if slices.ContainsFunc(l.notices.list, func(o Unserved) bool { return o.Layer == layer && slices.Equal(o.Snapshots, keys) }) {
		return nil // replacing it is tried again
	}
	l.notices.list = append(l.notices.list, u)
	l.saveUnserved()
	return nil
}

// Unserved lists the layers that were not served, with those of the snapshots on
// them that are still there. A layer without any is forgotten.
func (l *Set) Unserved(ctx context.Context) ([]Unserved, error) {
	l.notices.mu.Lock()
	defer l.notices.mu.Unlock()
	uses, err := l.uses(ctx)
	if err != nil {
		return nil, err
	}
	left := []Unserved{}
	for _, u := range l.notices.list {
		u.Snapshots = slices.DeleteFunc(slices.Clone(u.Snapshots), func(key string) bool {
			return !slices.Contains(uses[u.Layer].Active, key)
		})
		if len(u.Snapshots) > 0 {
			left = append(left, u)
		}
	}
	if len(left) != len(l.notices.list) || !l.notices.saved {
		l.notices.list = left
		l.saveUnserved()
	}
	return slices.Clone(left), nil
}

// saveUnserved writes the list. Where that fails, as on a full disk, the daemon has it,
// and tries again when it is asked. The caller holds notices.mu.
func (l *Set) saveUnserved() {
	b, err := json.Marshal(l.notices.list)
	if err == nil {
		err = continuity.AtomicWriteFile(filepath.Join(l.Root, unservedFile), b, 0o600)
	}
	l.notices.saved = err == nil
	if err != nil {
		l.Log.Error("writing which mounts were not served; the next start will not know", "error", err)
	}
	l.endAbandoned()
}

func (l *Set) readUnserved() (list []Unserved, err error) {
	b, err := os.ReadFile(filepath.Join(l.Root, unservedFile))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(b, &list); err != nil {
		l.Log.Error("the list of layers that were not served is damaged and begun anew", "error", err)
		return nil, nil
	}
	return list, nil
}
