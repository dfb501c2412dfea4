package ondemand

import (
	"log/slog"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
)

// TestStartWhileClosing has a transport's loop go on starting requests while Close waits
// for those under way, as it does: a fill's own write may need the loop.
func TestStartWhileClosing(t *testing.T) {
	r := NewRequests(slog.New(slog.DiscardHandler), true)
	r.Recover()
	var stop atomic.Bool
	var started, ended atomic.Int64
	var loop sync.WaitGroup
	loop.Go(func() {
		for !stop.Load() {
			if r.Start(func() { runtime.Gosched(); ended.Add(1) }) {
				started.Add(1)
			}
			for started.Load()-ended.Load() > 1 {
				runtime.Gosched()
			}
		}
	})
	for range 300_000 {
		r.WaitAll()
	}
	stop.Store(true)
	loop.Wait()
	r.WaitAll()
	if started.Load() != ended.Load() {
		t.Errorf("%d requests started, %d ended", started.Load(), ended.Load())
	}
}
