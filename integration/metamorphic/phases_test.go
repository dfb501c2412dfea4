package metamorphic

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/lacuna-snapshotter/lacuna/fetcher/registry/registrytest"
)

// reboots is a flavour whose machine boots again in good order.
const reboots = "reboot"

// flavourOf picks what happens to a sequence.
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

// planOf picks when that happens.
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

// phase lets goroutines operate, and then waits until the node is idle.
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

// rest ends the faults, starts the node again if it is down, and compares it with the
// model.
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
