package metamorphic

import (
	"context"
	"fmt"
	"math/rand/v2"
	"time"
)

// collect is containerd's garbage collection.
func (s *sequence) collect(r *rand.Rand) {
	s.m.protocol.Lock()
	for _, key := range s.m.garbage() {
		sn := s.m.snap(key)
		if sn == nil {
			continue
		}
		was := sn.exists
		s.m.setExists(key, unsure)
		err := s.call(fmt.Sprintf("Remove %.60q", key), func(ctx context.Context, sn Snapshotter) error { return sn.Remove(ctx, key) })
		if err == nil || notFound(err) && was == unsure {
			s.m.setExists(key, goneForSure)
		} else if s.must("Remove garbage", err); s.failed.Load() {
			break
		}
	}
	s.m.protocol.Unlock()
	s.cleanup(r)
}

func (s *sequence) cleanup(*rand.Rand) {
	err := s.call("Cleanup", func(ctx context.Context, sn Snapshotter) error { return sn.Cleanup(ctx) })
	s.must("Cleanup", err)
}

// evict has the node empty what no container uses, now or soon.
func (s *sequence) evict(*rand.Rand) {
	s.ask("evict")
	if s.config.MaxBytes > 0 {
		time.Sleep(2 * s.config.EvictEvery)
	}
}

func (s *sequence) ask(op string) {
	if s.down.Load() {
		return
	}
	s.nodeLock.RLock()
	defer s.nodeLock.RUnlock()
	_, err := s.child.ask(request{Op: op})
	s.note("%s: %v", op, err)
	if !s.faulty.Load() {
		s.must(op, err)
	}
}
