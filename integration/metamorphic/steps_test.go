package metamorphic

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
)

var (
	steps = flag.Int("steps", 12, "steps to try of each kind of fault, spread over all; 0 is every one")
	only  = flag.String("call", "", "count only this system call, as unlinkat")
	step  = flag.String("step", "", "the only one to try, as kill:42, or the only kind, as kill")
)

// script takes a layer through its life once.
func (s *sequence) script() {
	r := rand.New(rand.NewPCG(s.seed, 4))
	do := func(operations ...func(*sequence, *rand.Rand)) {
		for _, o := range operations {
			if !s.failed.Load() && !s.down.Load() {
				o(s, r)
			}
		}
	}
	namespaces := s.m.namespaces
	pull := func(ns, image int) func(*sequence, *rand.Rand) {
		return func(*sequence, *rand.Rand) { s.pullImage(namespaces[ns%len(namespaces)], image) }
	}
	drop := func(*sequence, *rand.Rand) {
		for _, ns := range namespaces {
			clear(ns.images)
		}
	}
	do(pull(0, 0), (*sequence).start, (*sequence).readSome, (*sequence).fillAll, (*sequence).write, (*sequence).stopAll)
	do((*sequence).evict, pull(1, 1), (*sequence).start, (*sequence).fillAll, (*sequence).mounts, (*sequence).stopAll)
	do(drop, (*sequence).collect)
	do(pull(0, 0), pull(1, 1), (*sequence).start, (*sequence).readAll, (*sequence).fillAll, (*sequence).stopAll)
	do(drop, (*sequence).collect)
}

// fillAll reads all layers, by a view on each committed snapshot.
func (s *sequence) fillAll(*rand.Rand) {
	s.m.protocol.RLock()
	defer s.m.protocol.RUnlock()
	for _, sn := range s.m.committed() {
		if err := s.viewAndRead(sn); err != nil && !s.faulty.Load() {
			s.must("view of "+sn.key, err)
		}
	}
}

// stopAll stops all containers.
func (s *sequence) stopAll(*rand.Rand) {
	s.reads.Wait()
	for _, c := range s.m.containers {
		c.Lock()
		if s.unmount(c) && !c.removed {
			c.removed = true
			s.remove(c.key)
		}
		c.Unlock()
	}
}

// TestSteps has one script fail, die and lose its power before each writing call.
func TestSteps(t *testing.T) {
	list := newWorkers(t, *workers)
	type job struct {
		action string
		at     int
	}
	var jobs []job
	kind, at, one := strings.Cut(*step, ":")
	for _, action := range []string{kill, fail, power} {
		if kind != "" && action != kind {
			continue
		}
		total := 0
		_, failures := list[0].do(t, *firstSeed, calmFor(action), func(s *sequence) {
			total = s.under(rand.New(rand.NewPCG(1, 1)), plan{action: calm, only: *only}, s.script)
			s.finish()
		})
		if len(failures) > 0 {
			t.Fatalf("without any fault: %v", failures)
		}
		t.Logf("%s: %d steps", action, total)
		n := total
		if *steps > 0 {
			n = min(*steps, total)
		}
		shift := rand.New(rand.NewPCG(*firstSeed, 5)).IntN(max(1, total/n))
		for i := range n {
			jobs = append(jobs, job{action, 1 + i*total/n + shift})
		}
	}
	if one {
		n, err := strconv.Atoi(at)
		if err != nil {
			t.Fatal(err)
		}
		jobs = []job{{kind, n}}
	}
	var next, failed atomic.Int64
	var mu sync.Mutex
	kinds := map[string]int{}
	var wg sync.WaitGroup
	for _, w := range list {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for {
				i := next.Add(1) - 1
				if i >= int64(len(jobs)) || failed.Load() > int64(*tolerate) {
					return
				}
				p := plan{action: jobs[i].action, at: jobs[i].at, count: 1, seed: uint64(jobs[i].at), only: *only}
				s, failures := w.do(t, *firstSeed, calmFor(p.action), func(s *sequence) {
					s.under(rand.New(rand.NewPCG(s.seed, 1)), p, s.script)
					if !s.failed.Load() {
						s.finish()
					}
				})
				if len(failures) == 0 {
					continue
				}
				failed.Add(1)
				mu.Lock()
				kinds[p.action+": "+failures[0].kind]++
				s.report(t, fmt.Sprintf("-run TestSteps -seed %d -step %s:%d -call %q", s.seed, p.action, p.at, p.only))
				mu.Unlock()
			}
		}()
	}
	wg.Wait()
	t.Logf("%d of %d runs failed: %v", failed.Load(), len(jobs), kinds)
}

// calmFor is the flavour of a sequence that a script of faults needs.
func calmFor(action string) string {
	if action == power {
		return power
	}
	return calm
}
