package metamorphic

import (
	"fmt"
	"maps"
	"slices"
	"sync"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
)

// model is what the node must know and show.
type model struct {
	// protocol is the lock of containerd's metadata store: shared by those who make
	// snapshots, held alone by the garbage collector, and not held over Cleanup.
	protocol sync.RWMutex

	mu         sync.Mutex
	namespaces []*namespace
	snaps      map[string]*snap // by the node's key
	containers []*container
	indexed    map[*layer]bool // has an index in the store
	drops      int             // of indexes
	next       int
}

// namespace is one of containerd's.
type namespace struct {
	name   string
	pull   sync.Mutex        // one pull at a time
	chains map[string]string // chain ID to the node's key
	images map[int]bool
	tops   map[string]bool // committed containers, by the node's key
}

// existence of a snapshot.
type existence int

const (
	there existence = iota
	unsure
	goneForSure
)

// snap is a snapshot.
type snap struct {
	key, parent string
	kind        snapshots.Kind
	exists      existence
	owned       bool // not committed: a container or an unpack uses it
	lazy        bool
	layer       *layer  // of a lazy one
	files       content // committed: with all below
	ordinary    bool    // it or one below it is not lazy
}

// container is a snapshot with a mount on it.
type container struct {
	sync.Mutex
	key     string
	ns      *namespace
	view    bool
	parent  *snap
	mounts  []mount.Mount
	dir     string
	mounted bool
	removed bool // its snapshot: the overlay may outlive it
	own     content
	held    map[int64]string // names of files that are held open, by task
	unsound bool             // its own files may be lost
}

// files are what the container must show.
func (c *container) files() content { return c.parent.files.with(c.own) }

// known reports whether a read by name must show files. Where a snapshot of a mounted
// overlay was removed, containerd's collector and Cleanup remove its directories and
// those of ordinary snapshots below it; then files of lower layers show, or none.
func (c *container) known() bool {
	return !c.removed || !c.parent.ordinary && len(c.own) == 0
}

func (m *model) newKey(ns *namespace, what string) string {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.next++
	return fmt.Sprintf("%s/%d/%s", ns.name, m.next, what)
}

func (m *model) put(s *snap) *snap {
	m.mu.Lock()
	defer m.mu.Unlock()
	if old := m.snaps[s.key]; old != nil && old.exists == there {
		return old
	}
	m.snaps[s.key] = s
	return s
}

func (m *model) snap(key string) *snap {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.snaps[key]
}

func (m *model) setExists(key string, e existence) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if s := m.snaps[key]; s != nil {
		s.exists = e
		if e == goneForSure {
			delete(m.snaps, key)
			m.forgetReferences(key)
		}
	}
}

// garbage lists the snapshots that no namespace refers to, leaves first. What a
// namespace still wants is kept with all that it stands on.
func (m *model) garbage() (list []string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	used := map[string]bool{}
	use := func(key string) {
		for s := m.snaps[key]; s != nil && !used[s.key]; s = m.snaps[s.parent] {
			used[s.key] = true
		}
	}
	for _, ns := range m.namespaces {
		for image := range ns.images {
			for n := range imageLayers[image] {
				use(ns.chains[chainID(layersOf(image)[:n+1])])
			}
		}
		for key := range ns.tops {
			use(key)
		}
	}
	for key, s := range m.snaps {
		if s.owned {
			use(key)
		}
	}
	left := maps.Clone(m.snaps)
	maps.DeleteFunc(left, func(key string, _ *snap) bool { return used[key] })
	for len(left) > 0 {
		parents := map[string]bool{}
		for _, s := range left {
			parents[s.parent] = true
		}
		for _, key := range slices.Sorted(maps.Keys(left)) {
			if !parents[key] {
				list = append(list, key)
				delete(left, key)
			}
		}
	}
	return list
}

// committed lists the committed snapshots.
func (m *model) committed() (list []*snap) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, key := range slices.Sorted(maps.Keys(m.snaps)) {
		if s := m.snaps[key]; s.kind == snapshots.KindCommitted {
			list = append(list, s)
		}
	}
	return list
}

// forgetReferences drops what namespaces say of a snapshot that is gone. The caller
// holds mu.
func (m *model) forgetReferences(key string) {
	for _, ns := range m.namespaces {
		maps.DeleteFunc(ns.chains, func(_, k string) bool { return k == key })
		delete(ns.tops, key)
	}
}
