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
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/lacuna-snapshotter/lacuna/fetcher/registry/registrytest"
)

// reboots is a flavour whose machine boots again in good order.
const reboots = "reboot"

// flavourOf picks what befalls a sequence.
func flavourOf(r *rand.Rand) string {
	switch n := r.IntN(20); {
	case n < 4:
		return calm
	case n < 9:
		return delay
	case n < 13:
		return fail
	case n < 17:
		return kill
	case n < 19:
		return power
	}
	return reboots
}

// planOf picks when it does.
func planOf(r *rand.Rand, flavour string) plan {
	p := plan{action: calm, seed: r.Uint64(), at: 1 + r.IntN(2<<r.IntN(9)), count: 1 + r.IntN(1<<r.IntN(6))}
	if r.IntN(3) == 0 {
		only := []string{"unlinkat", "renameat", "mkdirat", "umount2", "mount", "fsync", "fdatasync", "fanotify_mark", "openat", "ftruncate"}
		p.only = only[r.IntN(len(only))]
		p.at = 1 + r.IntN(1<<r.IntN(5))
	}
	switch flavour {
	case delay, fail, kill, power:
		p.action = flavour
	}
	if r.IntN(2) == 0 {
		p.again = r.IntN(3)
	}
	if flavour != calm && flavour != reboots && r.IntN(4) == 0 {
		p.action = delay // not in every phase
	}
	return p
}

// newSequence makes the node of a sequence.
func (w *worker) newSequence(t *scope, seed uint64, flavour string) (s *sequence, err error) {
	r := rand.New(rand.NewPCG(seed, 1))
	drawn := flavourOf(r)
	if flavour == "" {
		flavour = drawn
	}
	s = &sequence{worker: w, t: t, seed: seed, flavour: flavour, began: time.Now(), over: make(chan struct{})}
	s.dir = filepath.Join(w.dir, fmt.Sprintf("s%d", seed))
	if err := os.MkdirAll(s.dir, 0o755); err != nil {
		return nil, err
	}
	s.root = filepath.Join(w.disk.dir, fmt.Sprintf("r%d", seed))
	if flavour == power {
		s.root = filepath.Join(w.dir, fmt.Sprintf("r%d", seed))
		if s.ownDisk, err = newDisk(filepath.Join(w.dir, "power"), s.root, 48<<20); err != nil {
			return s, err
		}
	}
	s.m = &model{snaps: map[string]*snap{}, indexed: map[*layer]bool{}}
	for _, name := range []string{"default", "k8s.io"}[:*namespaces] {
		s.m.namespaces = append(s.m.namespaces, &namespace{name: name, chains: map[string]string{}, images: map[int]bool{}, tops: map[string]bool{}})
	}
	if err := os.MkdirAll(filepath.Join(s.root, "index"), 0o700); err != nil {
		return s, err
	}
	s.reg = registrytest.New(t)
	for n, l := range theLayers {
		s.reg.AddBlob(l.packed)
		if n != unindexed {
			if err := l.putIndex(s.root, r.IntN(len(layouts))); err != nil {
				return s, err
			}
			s.m.indexed[l] = true
		}
	}
	if flavour == power {
		if err := sh(`sync -f "$1"`, s.root); err != nil {
			return s, err
		}
	}
	s.config.Backfill = r.IntN(3) == 0
	if r.IntN(2) == 0 {
		s.config.MaxBytes = []int64{1, 500_000}[r.IntN(2)]
		s.config.EvictEvery = time.Duration(1+r.IntN(10)) * time.Millisecond
	}
	if w.child == nil || w.child.dead() {
		if err := w.freshChild(); err != nil {
			return s, err
		}
	}
	if w.reader == nil {
		if w.reader, err = startReader(); err != nil {
			return s, err
		}
	}
	s.adopt()
	if err := s.newGroup(); err != nil {
		return s, err
	}
	s.note("seed %d, flavour %s, %+v", seed, flavour, s.config)
	if err := s.open(false, plan{action: calm}); err != nil {
		return s, err
	}
	// containerd's metadata store (core/snapshots/storage) answers ErrNotFound to
	// Walk and Cleanup as long as there was never a snapshot.
	ctx, cancel := callContext()
	defer cancel()
	if _, err := s.child.Prepare(ctx, "first", ""); err != nil {
		return s, err
	}
	return s, s.child.Remove(ctx, "first")
}

// run runs the phases.
func (s *sequence) run() {
	r := rand.New(rand.NewPCG(s.seed, 2))
	phases := 1 + r.IntN(3)
	for n := range phases {
		p := planOf(r, s.flavour)
		if s.phase(r, n, p); s.failed.Load() {
			return
		}
	}
	s.finish()
}

// phase lets goroutines operate, and then has the node come to rest.
func (s *sequence) phase(r *rand.Rand, n int, p plan) {
	goroutines, each := []int{1, 2, 3, 6}[r.IntN(4)], 3+r.IntN(10)
	s.note("phase %d: %d goroutines, %d operations each", n, goroutines, each)
	s.under(r, p, func() {
		var wg sync.WaitGroup
		for range goroutines {
			wg.Add(1)
			own := rand.New(rand.NewPCG(r.Uint64(), 3))
			go func() {
				defer wg.Done()
				for range each {
					if s.failed.Load() || s.down.Load() {
						return
					}
					s.operate(own)
				}
			}()
		}
		wg.Wait()
	})
}

// under works under a plan, and then has the node come to rest. It returns how many
// calls there were.
func (s *sequence) under(r *rand.Rand, p plan, work func()) int {
	s.note("under the plan: %s", p)
	hard := p.action == fail || p.action == kill || p.action == power
	if hard {
		s.lenient.Store(true)
		s.troubled.Store(true)
		s.faulty.Store(s.faulty.Load() || p.action == fail)
	}
	s.child.supervisor.set(s.root, p)
	first := s.child
	work()
	if p.action == kill || p.action == power {
		if _, struck, _ := first.supervisor.disarm(); !struck { // not so many calls
			s.strike(first, p.action)
		}
	}
	count := s.quiet()
	s.note("the plan is over")
	s.rest(r)
	return count
}

// rest ends the faults, brings the node back where it is down, and compares it with
// the model.
func (s *sequence) rest(r *rand.Rand) {
	s.reg.ClearFaults()
	if s.down.Load() || s.flavour == reboots {
		if err := s.reboot(); err != nil {
			s.fail(wrongState, "boot: %v", err)
			return
		}
	}
	s.reads.Wait()
	if s.lenient.Swap(false) {
		s.faulted.Store(time.Now().UnixNano())
	}
	s.faulty.Store(false)
	if s.failed.Load() {
		return
	}
	if r.IntN(4) == 0 && !s.restart(r) {
		return
	}
	s.resolve()
	if !s.failed.Load() {
		s.remount()
	}
	if !s.failed.Load() {
		s.checkContainers()
	}
	if !s.failed.Load() && r.IntN(3) == 0 {
		s.tidy(r, s.exact)
	}
}

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

// restart stops the node and starts it. Where calls fail, the start may, and then the
// next must not.
func (s *sequence) restart(r *rand.Rand) bool {
	if err := s.child.close(); err != nil {
		s.fail(wrongState, "stop: %v\n%.8000s", err, s.child.stderr)
		return false
	}
	p := plan{action: calm}
	if s.flavour == fail {
		p = plan{action: fail, at: 1 + r.IntN(40), count: 1 + r.IntN(4), seed: r.Uint64()}
		s.troubled.Store(true)
	}
	s.faulty.Store(p.action == fail)
	defer s.faulty.Store(false)
	err := s.open(true, p)
	_, _, hits := s.child.supervisor.disarm()
	s.note("stopped and started under the plan %s, %q: %v", p, hits, err)
	if err != nil && p.action == fail {
		s.child.kill()
		if err := s.freshChild(); err != nil {
			s.fail(deadNode, "start a node: %v", err)
			return false
		}
		s.adopt()
		err = s.open(true, plan{action: calm})
	}
	if err != nil {
		s.fail(wrongState, "start: %v\n%.8000s", err, s.child.stderr)
		return false
	}
	return true
}

// remount mounts the containers again that a boot has left. After a loss of power
// what was theirs may be gone, so they go.
func (s *sequence) remount() {
	for _, c := range s.m.containers {
		if c.mounted || c.removed {
			continue
		}
		if c.unsound {
			c.removed = true
			s.remove(c.key)
			continue
		}
		s.mended(wrongCall, "Mounts after a boot", func() error {
			return s.call("Mounts "+c.key, func(ctx context.Context, sn Snapshotter) (err error) {
				c.mounts, err = sn.Mounts(ctx, c.key)
				return err
			})
		})
		if s.failed.Load() {
			return
		}
		if err := mountAt(c.mounts, c.dir); err != nil {
			s.fail(wrongState, "mount %s after a boot: %v", c.key, err)
			return
		}
		c.mounted = true
	}
	s.m.containers = slices.DeleteFunc(s.m.containers, func(c *container) bool { return !c.mounted && len(c.held) == 0 })
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

// finish checks that all is well and that all goes.
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
