package layer

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
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

// Unserved lists the layers that were not served, with the snapshots on them that
// still exist. A layer without any is forgotten.
func (l *Set) Unserved(ctx context.Context) ([]Unserved, error) {
	uses, err := l.uses(ctx)
	if err != nil {
		return nil, err
	}
	return l.notices.prune(func(layer digest.Digest, key string) bool { return slices.Contains(uses[layer].Active, key) }), nil
}

// noteUnserved adds a layer whose mount was not served, before the mount is replaced:
// a daemon that dies in between, or cannot write on a full disk, must not lose both the
// mount and the notice.
func (l *Set) noteUnserved(ctx context.Context, layer digest.Digest) error {
	uses, err := l.uses(ctx)
	if err != nil {
		return err
	}
	u := Unserved{layer, l.Transport.Name(), time.Now().UTC(), slices.Sorted(slices.Values(uses[layer].Active))}
	l.Log.Error("a layer's mount was not served for some time: containers on it may have read "+u.Reads()+" in place of holes; restart them",
		"layer", layer, "transport", u.Transport, "snapshots", u.Snapshots)
	l.notices.add(u)
	return nil
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

// notices are the layers that were not served, in a file that outlives the daemon: an
// array of Unserved in JSON. Once it is written and all mounts are served, they remove
// Abandon's note.
type notices struct {
	root string
	log  *slog.Logger

	mu       sync.Mutex
	list     []Unserved
	saved    bool // the file has the list
	replaced bool // Start has served or replaced all mounts
}

// openNotices reads what earlier starts found. A file that cannot be read does not
// stop the start.
func openNotices(root string, log *slog.Logger) *notices {
	n := &notices{root: root, log: log}
	path := filepath.Join(root, unservedFile)
	b, err := os.ReadFile(path)
	switch {
	case errors.Is(err, os.ErrNotExist):
		n.saved = true
	case err != nil:
		log.Error("the list of mounts that were not served could not be read; what earlier starts found is lost", "file", path, "error", err)
	default:
		n.saved = true
		if err := json.Unmarshal(b, &n.list); err != nil {
			log.Error("the list of mounts that were not served is damaged; a new one is begun", "file", path, "error", err)
			n.list = nil
		}
	}
	return n
}

// add adds a layer, unless it is listed with the same snapshots: then its mount could
// not be replaced before.
func (n *notices) add(u Unserved) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if slices.ContainsFunc(n.list, func(o Unserved) bool { return o.Layer == u.Layer && slices.Equal(o.Snapshots, u.Snapshots) }) {
		return
	}
	n.list = append(n.list, u)
	n.save()
}

// prune forgets snapshots that do not exist and layers without any, and returns the
// rest.
func (n *notices) prune(exists func(layer digest.Digest, key string) bool) []Unserved {
	n.mu.Lock()
	defer n.mu.Unlock()
	left := []Unserved{}
	for _, u := range n.list {
		u.Snapshots = slices.DeleteFunc(slices.Clone(u.Snapshots), func(key string) bool { return !exists(u.Layer, key) })
		if len(u.Snapshots) > 0 {
			left = append(left, u)
		}
	}
	if len(left) != len(n.list) || !n.saved {
		n.list = left
		n.save()
	}
	return slices.Clone(left)
}

// save writes the list. Where that fails, as on a full disk, it is tried again when the
// list is asked for. The caller holds n.mu.
func (n *notices) save() {
	path := filepath.Join(n.root, unservedFile)
	b, err := json.Marshal(n.list)
	if err == nil {
		err = continuity.AtomicWriteFile(path, b, 0o600)
	}
	n.saved = err == nil
	if err != nil {
		n.log.Error("the list of mounts that were not served could not be written; a restart may lose it", "file", path, "error", err)
	}
	n.endAbandoned()
}

// allReplaced notes that Start has served or replaced all mounts.
func (n *notices) allReplaced() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.replaced = true
	n.endAbandoned()
}

// endAbandoned removes Abandon's note where that may be done. The caller holds n.mu.
func (n *notices) endAbandoned() {
	if !n.replaced || !n.saved {
		return
	}
	path := filepath.Join(n.root, abandonedFile)
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		n.log.Error("the note that mounts are not served could not be removed; the next start mounts every layer again", "file", path, "error", err)
	}
}
