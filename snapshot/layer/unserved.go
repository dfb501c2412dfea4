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

// Unserved is a layer whose mount was not served for some time: all holders of the
// transport's descriptors had died. On fanotify reads of holes returned zeros
// meanwhile, which may stay in the page cache of the old mount; on the other transports
// they returned EIO. The layer has a fresh mount for new containers. Those that run on
// the old one are named.
type Unserved struct {
	Layer     digest.Digest `json:"layer"`
	Transport string        `json:"transport"`
	Found     time.Time     `json:"found"` // when the next daemon started
	// Snapshots are the active snapshots on the layer at that time, by
	// containerd's keys, which end in the container's ID.
	Snapshots []string `json:"snapshots"`
}

// Reads is what reads of holes returned: "zeros" or "EIO".
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

// Abandon notes that no process has served the mounts below root without a gap. A
// daemon calls it before it gives a new transport's descriptors to a holder: if it dies
// before Start has replaced the mounts, the next daemon adopts a transport that has not
// served them either, and must replace them, too. Open obeys the note, and Start
// removes it.
func Abandon(root string) error {
	return os.WriteFile(filepath.Join(root, abandonedFile), nil, 0o600)
}

func isAbandoned(root string) bool {
	_, err := os.Lstat(filepath.Join(root, abandonedFile))
	return !errors.Is(err, os.ErrNotExist)
}

// restored notes that Start has served or replaced all mounts.
func (l *Set) restored() {
	l.notices.mu.Lock()
	defer l.notices.mu.Unlock()
	l.notices.whole = true
	l.endAbandoned()
}

// endAbandoned removes Abandon's note when all mounts are served or replaced and the
// list of those that were not served is written. The caller holds notices.mu.
func (l *Set) endAbandoned() {
	if !l.notices.whole || !l.notices.saved {
		return
	}
	if err := os.Remove(filepath.Join(l.Root, abandonedFile)); err != nil && !errors.Is(err, os.ErrNotExist) {
		l.Log.Error("a note that mounts are not served could not be removed; the next start mounts every layer again", "file", filepath.Join(l.Root, abandonedFile), "error", err)
	}
}

// notices are the layers that were not served, also in unserved.json.
type notices struct {
	mu    sync.Mutex
	list  []Unserved
	saved bool // the file has the list
	whole bool // Start has served or replaced all mounts
}

// loadUnserved reads what earlier starts found. A file that cannot be read does not
// stop the start.
func (l *Set) loadUnserved() {
	list, err := l.readUnserved()
	if err != nil {
		l.Log.Error("the list of mounts that were not served could not be read; what earlier starts found is lost", "file", filepath.Join(l.Root, unservedFile), "error", err)
	}
	l.notices.list, l.notices.saved = list, err == nil
}

// noteUnserved adds a layer whose mount was not served, before the mount is replaced:
// a daemon that dies in between, or cannot write on a full disk, must not lose both the
// mount and the notice.
func (l *Set) noteUnserved(ctx context.Context, layer digest.Digest) error {
	uses, err := l.uses(ctx)
	if err != nil {
		return err
	}
	keys := slices.Sorted(slices.Values(uses[layer].Active))
	u := Unserved{layer, l.Transport.Name(), time.Now().UTC(), keys}
	l.Log.Error("a layer's mount was not served for some time: containers on it may have read "+u.Reads()+" in place of holes; restart them",
		"layer", layer, "transport", u.Transport, "snapshots", u.Snapshots)
	l.notices.mu.Lock()
	defer l.notices.mu.Unlock()
	if slices.ContainsFunc(l.notices.list, func(o Unserved) bool { return o.Layer == layer && slices.Equal(o.Snapshots, keys) }) {
		return nil // the mount could not be replaced before
	}
	l.notices.list = append(l.notices.list, u)
	l.saveUnserved()
	return nil
}

// Unserved lists the layers that were not served, with the snapshots on them that
// still exist. A layer without any is forgotten.
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

// saveUnserved writes the list. Where that fails, as on a full disk, it is tried again
// when the list is asked for. The caller holds notices.mu.
func (l *Set) saveUnserved() {
	b, err := json.Marshal(l.notices.list)
	if err == nil {
		err = continuity.AtomicWriteFile(filepath.Join(l.Root, unservedFile), b, 0o600)
	}
	l.notices.saved = err == nil
	if err != nil {
		l.Log.Error("the list of mounts that were not served could not be written; a restart may lose it", "error", err)
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
		l.Log.Error("the list of mounts that were not served is damaged; a new one is begun", "error", err)
		return nil, nil
	}
	return list, nil
}
