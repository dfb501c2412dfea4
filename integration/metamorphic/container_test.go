package metamorphic

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"path/filepath"
	"slices"

	"github.com/containerd/containerd/v2/core/snapshots"
	"golang.org/x/sys/unix"
)

func (s *sequence) nextDir() int {
	s.m.mu.Lock()
	defer s.m.mu.Unlock()
	s.m.next++
	return s.m.next
}

// start makes a container or a view and mounts it.
func (s *sequence) start(r *rand.Rand) {
	ns := s.m.namespaces[r.IntN(len(s.m.namespaces))]
	s.m.protocol.RLock()
	defer s.m.protocol.RUnlock()
	s.m.mu.Lock()
	var on []string
	for image := range ns.images {
		if key, ok := ns.chains[chainID(layersOf(image))]; ok {
			on = append(on, key)
		}
	}
	on = append(on, slices.Collect(maps.Keys(ns.tops))...)
	slices.Sort(on)
	key, ok := pick(r, on)
	parent := s.m.snaps[key]
	s.m.mu.Unlock()
	view := r.IntN(4) == 0
	if ok && parent != nil {
		s.startOn(ns, parent, view)
	}
}

func (s *sequence) startOn(ns *namespace, parent *snap, view bool) *container {
	kind, what := snapshots.KindActive, "Prepare"
	if view {
		kind, what = snapshots.KindView, "View"
	}
	key := s.m.newKey(ns, "container")
	active := s.m.put(&snap{key: key, parent: parent.key, kind: kind, exists: unsure, owned: true})
	c := &container{key: key, ns: ns, view: view, parent: parent, own: content{}, held: map[int64]string{}}
	c.dir = filepath.Join(s.dir, "c"+fmt.Sprint(s.nextDir()))
	err := s.call(fmt.Sprintf("%s %q on %.40s", what, key, parent.key), func(ctx context.Context, sn Snapshotter) (err error) {
		if view {
			c.mounts, err = sn.View(ctx, key, parent.key)
		} else {
			c.mounts, err = sn.Prepare(ctx, key, parent.key)
		}
		return err
	})
	if err == nil {
		s.m.setExists(key, there)
		err = mountAt(c.mounts, c.dir)
		c.mounted = err == nil
		s.note("mount %s at %s: %v", key, filepath.Base(c.dir), err)
		what = "mount"
	}
	if err != nil {
		s.must(what+" of a container", err)
		s.m.mu.Lock()
		active.owned = false
		s.m.mu.Unlock()
		return nil
	}
	s.m.mu.Lock()
	defer s.m.mu.Unlock()
	s.m.containers = append(s.m.containers, c)
	return c
}

// some picks a container and locks it.
func (s *sequence) some(r *rand.Rand, fit func(*container) bool) *container {
	s.m.mu.Lock()
	list := slices.Clone(s.m.containers)
	s.m.mu.Unlock()
	r.Shuffle(len(list), func(i, j int) { list[i], list[j] = list[j], list[i] })
	for _, c := range list {
		if c.TryLock() {
			if c.mounted && fit(c) {
				return c
			}
			c.Unlock()
		}
	}
	return nil
}

func any1(*container) bool { return true }

// lives is of a container whose snapshot is there.
func lives(c *container) bool { return !c.removed }

// commit commits a container, for others to stand on.
func (s *sequence) commit(r *rand.Rand) {
	if s.flavour == power {
		return
	}
	c := s.some(r, func(c *container) bool { return !c.view && !c.removed && !c.unsound && len(c.held) == 0 })
	if c == nil {
		return
	}
	defer c.Unlock()
	s.m.protocol.RLock()
	defer s.m.protocol.RUnlock()
	active := s.m.snap(c.key)
	if !s.unmount(c) || active == nil {
		return
	}
	name := s.m.newKey(c.ns, "committed")
	c.removed = true
	if !s.commitAs(active, name, c.files(), func() { c.ns.tops[name] = true }) {
		s.m.mu.Lock()
		active.owned = false
		s.m.mu.Unlock()
	}
}

// unmount ends a container's mount: lazily where it is in use, as runtimes do.
func (s *sequence) unmount(c *container) bool {
	if !c.mounted {
		return true
	}
	flags := 0
	if len(c.held) > 0 {
		flags = unix.MNT_DETACH
	}
	err := unix.Unmount(c.dir, flags)
	s.note("unmount %s: %v", c.key, err)
	if err != nil && !s.down.Load() {
		s.fail(wrongState, "unmount %s: %v", c.key, err)
		return false
	}
	c.mounted = false
	return true
}

// mounts asks for a container's mounts again.
func (s *sequence) mounts(r *rand.Rand) {
	c := s.some(r, lives)
	if c == nil {
		return
	}
	defer c.Unlock()
	err := s.call("Mounts "+c.key, func(ctx context.Context, sn Snapshotter) error {
		got, err := sn.Mounts(ctx, c.key)
		if err == nil && fmt.Sprint(got) != fmt.Sprint(c.mounts) {
			return fmt.Errorf("%v, they were %v", got, c.mounts)
		}
		return err
	})
	s.must("Mounts", err)
}

// stop ends a container: unmounts and removes it, in this order mostly.
func (s *sequence) stop(r *rand.Rand) {
	c := s.some(r, any1)
	if c == nil {
		return
	}
	defer c.Unlock()
	if c.removed {
		s.unmount(c)
		return
	}
	if r.IntN(4) > 0 && !s.unmount(c) {
		return
	}
	s.m.protocol.RLock()
	defer s.m.protocol.RUnlock()
	c.removed = true
	s.remove(c.key)
}

func (s *sequence) remove(key string) {
	active := s.m.snap(key)
	s.m.setExists(key, unsure)
	err := s.call(fmt.Sprintf("Remove %q", key), func(ctx context.Context, sn Snapshotter) error { return sn.Remove(ctx, key) })
	if err == nil {
		s.m.setExists(key, goneForSure)
		return
	}
	s.must("Remove", err)
	if active != nil {
		s.m.mu.Lock()
		active.owned = false
		s.m.mu.Unlock()
	}
}
