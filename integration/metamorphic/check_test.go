package metamorphic

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

// exact compares what is kept with what is used.
func (s *sequence) exact() error {
	used, count := map[digest.Digest]bool{}, 0
	s.m.mu.Lock()
	for _, sn := range s.m.snaps {
		count++
		if sn.lazy {
			used[sn.layer.digest] = true
		}
	}
	outlived := slices.ContainsFunc(s.m.containers, func(c *container) bool { return c.removed && (c.mounted || len(c.held) > 0) })
	s.m.mu.Unlock()
	dirs, err := os.ReadDir(filepath.Join(s.root, "snapshots"))
	if err != nil {
		return err
	}
	if n := len(dirs) - 1; n > count { // m has the layers' mountpoints
		return fmt.Errorf("%d snapshots, %d directories", count, n)
	}
	a, err := s.child.ask(request{Op: "status"})
	if err != nil {
		return err
	}
	for _, l := range a.Layers {
		if l.State == "quarantined" {
			return fmt.Errorf("layer %s is quarantined: %s", l.Layer, l.Reason)
		}
		if !used[l.Layer] && !outlived { // an overlay may hold it
			return fmt.Errorf("layer %s is kept and nothing uses it", l.Layer)
		}
	}
	return nil
}

// resolve compares what the node knows with the model, and learns what became of
// operations whose outcome is not known.
func (s *sequence) resolve() {
	found := map[string]snapshots.Info{}
	if !s.mended(wrongCall, "Walk", func() error {
		return s.call("Walk", func(ctx context.Context, sn Snapshotter) error {
			return sn.Walk(ctx, func(_ context.Context, i snapshots.Info) error {
				found[i.Name] = i
				return nil
			})
		})
	}) {
		return
	}
	s.m.mu.Lock()
	defer s.m.mu.Unlock()
	for key, sn := range s.m.snaps {
		info, ok := found[key]
		if ok && sn.lazy && sn.exists == unsure && info.Kind == sn.kind {
			// Two namespaces may have wanted the chain, on parents of their own.
			sn.parent = info.Parent
			sn.ordinary = s.m.snaps[sn.parent] != nil && s.m.snaps[sn.parent].ordinary
		}
		switch {
		case ok && (info.Kind != sn.kind || info.Parent != sn.parent):
			s.fail(wrongState, "snapshot %s is %v on %q, should be %v on %q", key, info.Kind, info.Parent, sn.kind, sn.parent)
		case ok:
			sn.exists = there
		case sn.exists == there:
			s.fail(wrongState, "snapshot %s is lost", key)
		default:
			delete(s.m.snaps, key)
			s.m.forgetReferences(key)
			for _, c := range s.m.containers {
				c.removed = c.removed || c.key == key
			}
		}
		delete(found, key)
	}
	for key, info := range found {
		s.fail(wrongState, "an unknown snapshot %s: %+v", key, info)
	}
}

// checkContainers has every container read right.
func (s *sequence) checkContainers() {
	for _, c := range s.m.containers {
		if c.mounted && !c.removed && !c.unsound {
			s.mended(readError, "container "+c.key, func() error { return s.checkTree("tree of "+c.key, c.dir, c.files(), false) })
		}
	}
}

// finish checks that everything reads right, removes everything, and checks that nothing
// is left.
func (s *sequence) finish() {
	for _, sn := range s.m.committed() {
		if sn.exists == there && !s.mended(wrongCall, "view of "+sn.key, func() error { return s.viewAndRead(sn) }) {
			return
		}
	}
	for _, c := range s.m.containers {
		for id := range c.held {
			if _, err := s.read(task{Op: "shut", Held: id}); err != nil {
				s.fail(wrongState, "shut: %v", err)
			}
		}
		c.held = nil
		s.unmount(c)
		if !c.removed {
			s.remove(c.key)
		}
		if s.failed.Load() {
			return
		}
	}
	for _, ns := range s.m.namespaces {
		clear(ns.images)
		clear(ns.tops)
	}
	s.m.mu.Lock()
	for _, sn := range s.m.snaps {
		sn.owned = false
	}
	s.m.mu.Unlock()
	s.mended(wrongCall, "removal of all", func() error {
		for _, key := range s.m.garbage() {
			err := s.call(fmt.Sprintf("Remove %.60q", key), func(ctx context.Context, sn Snapshotter) error { return sn.Remove(ctx, key) })
			if err != nil && !notFound(err) {
				return err
			}
			s.m.setExists(key, goneForSure)
		}
		return nil
	})
	s.tidy(rand.New(rand.NewPCG(s.seed, 6)), s.clean)
	if s.failed.Load() {
		return
	}
	if err := s.child.close(); err != nil {
		s.fail(wrongState, "stop: %v\n%.8000s", err, s.child.stderr)
	}
}

// tidy cleans up until nothing is kept that is not used. What only a start of the
// node tidies up is told apart.
func (s *sequence) tidy(r *rand.Rand, check func() error) {
	try := func() error {
		if err := s.call("Cleanup", func(ctx context.Context, sn Snapshotter) error { return sn.Cleanup(ctx) }); err != nil {
			return err
		}
		return check()
	}
	err := s.mends(try)
	if err == nil || s.failed.Load() {
		return
	}
	s.note("left over: %v", err)
	flavour := s.flavour
	s.flavour = calm // nothing fails in this start
	restarted := s.restart(r) && s.mends(try) == nil
	s.flavour = flavour
	switch {
	case !restarted:
		s.fail(leftovers, "%v", err)
	case !*startTidies:
		s.fail(untilStart, "%v", err)
	}
}

// clean reports what is left of snapshots and layers.
func (s *sequence) clean() error {
	var left []string
	for _, dir := range []string{"snapshots", "snapshots/m", "layers", "new", "trash"} {
		entries, err := os.ReadDir(filepath.Join(s.root, dir))
		if err != nil && !os.IsNotExist(err) {
			return err
		}
		for _, e := range entries {
			if name := dir + "/" + e.Name(); name != "snapshots/m" {
				left = append(left, name)
			}
		}
	}
	mounts, err := below(s.root)
	if err != nil {
		return err
	}
	for _, m := range mounts {
		if m != s.root {
			left = append(left, "mount "+m)
		}
	}
	a, err := s.child.ask(request{Op: "status"})
	if err != nil {
		return err
	}
	if len(a.Layers) > 0 || a.Served {
		left = append(left, fmt.Sprintf("status: %+v, served %v", a.Layers, a.Served))
	}
	if len(left) > 0 {
		return errors.New(strings.Join(left, ", "))
	}
	return nil
}

// end releases what the sequence has, however it went.
func (s *sequence) end() error {
	var errs []error
	if s.child != nil {
		s.quiet()
	}
	s.nodeLock.Lock()
	close(s.over)
	s.nodeLock.Unlock()
	if s.failed.Load() || s.down.Load() {
		if s.child != nil {
			s.child.kill()
		}
		if s.reader != nil {
			s.reader.kill()
		}
		s.reader = nil
	}
	if s.group != nil {
		s.group.Close()
	}
	s.reads.Wait()
	errs = append(errs, s.unmountAll())
	if s.ownDisk != nil {
		errs = append(errs, unix.Unmount(s.root, unix.MNT_DETACH), os.Remove(s.ownDisk.image))
		_ = os.Remove(s.copied())
	}
	return errors.Join(append(errs, os.RemoveAll(s.root), os.RemoveAll(s.dir))...)
}
