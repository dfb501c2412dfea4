package metamorphic

import (
	"context"
	"fmt"
	"math/rand/v2"

	"github.com/containerd/errdefs"

	"github.com/lacuna-snapshotter/lacuna/fetcher/registry/registrytest"
)

// reindex puts a new index of a layer into the store, or takes it away.
func (s *sequence) reindex(r *rand.Rand) {
	l := theLayers[r.IntN(unindexed)]
	s.m.mu.Lock()
	defer s.m.mu.Unlock()
	layout := r.IntN(len(layouts) + 1)
	var err error
	if layout == len(layouts) {
		if s.flavour == power { // containerd would unpack it
			return
		}
		s.m.indexed[l] = false
		s.m.drops++
		err = l.dropIndex(s.root)
	} else if err = l.putIndex(s.root, layout); err == nil {
		s.m.indexed[l] = true
	}
	s.note("index of %s is layout %d: %v", l.name, layout, err)
	if err != nil && !s.down.Load() {
		s.fail(wrongState, "index: %v", err)
	}
}

// probe makes calls that must fail.
func (s *sequence) probe(r *rand.Rand) {
	s.m.protocol.Lock()
	defer s.m.protocol.Unlock()
	expect := func(what string, is func(error) bool, do func(context.Context, Snapshotter) error) {
		err := s.call(what, do)
		if !is(err) && !s.lenient.Load() && !s.down.Load() && !s.failed.Load() {
			s.fail(wrongCall, "%s: %v", what, err)
		}
	}
	switch r.IntN(4) {
	case 0:
		expect("Mounts of nothing", errdefs.IsNotFound, func(ctx context.Context, sn Snapshotter) error {
			_, err := sn.Mounts(ctx, "nothing")
			return err
		})
	case 1:
		expect("View on nothing", errdefs.IsNotFound, func(ctx context.Context, sn Snapshotter) error {
			_, err := sn.View(ctx, "probe", "nothing")
			return err
		})
	case 2:
		for _, c := range s.m.committed() {
			if c.parent != "" && c.exists == there && s.m.snap(c.parent) != nil {
				expect("Remove of a parent", errdefs.IsFailedPrecondition, func(ctx context.Context, sn Snapshotter) error {
					return sn.Remove(ctx, c.parent)
				})
				return
			}
		}
	case 3:
		for _, c := range s.m.committed() {
			if c.exists == there {
				expect("Stat", func(err error) bool { return err == nil }, func(ctx context.Context, sn Snapshotter) error {
					if _, err := sn.Usage(ctx, c.key); err != nil {
						return err
					}
					info, err := sn.Stat(ctx, c.key)
					if err == nil && (info.Kind != c.kind || info.Parent != c.parent) {
						return fmt.Errorf("%+v", info)
					}
					return err
				})
				return
			}
		}
	}
}

// trouble lets the registry misbehave for a while.
func (s *sequence) trouble(r *rand.Rand) {
	if s.flavour == power { // containerd would unpack layers
		return
	}
	s.faulty.Store(true)
	s.troubled.Store(true)
	faults := []registrytest.Fault{
		registrytest.Status(503, ""), registrytest.Status(404, ""), registrytest.Status(401, ""),
		registrytest.Flip, registrytest.OtherRange, registrytest.Short(0), registrytest.Whole,
	}
	n := r.IntN(len(faults))
	s.note("the registry has trouble of kind %d", n)
	for range 1 + r.IntN(10) {
		s.reg.Fail(faults[n])
	}
}
