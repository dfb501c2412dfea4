package layer

import (
	"context"
	"sync"
	"time"
)

// work owns the goroutines of a set: it starts them, counts them and ends them.
type work struct {
	ctx    context.Context // of all goroutines; ends with the work
	cancel context.CancelFunc

	starting sync.Mutex // orders start and end
	running  sync.WaitGroup
}

func newWork() work {
	ctx, cancel := context.WithCancel(context.Background())
	return work{ctx: ctx, cancel: cancel}
}

// start runs f in a goroutine, which returns soon after w.ctx ends. After end nothing
// is started.
func (w *work) start(f func()) {
	w.starting.Lock()
	defer w.starting.Unlock()
	if w.ctx.Err() == nil {
		w.running.Go(f)
	}
}

// end ends w.ctx and waits until all goroutines have returned.
func (w *work) end() {
	w.starting.Lock()
	w.cancel()
	w.starting.Unlock()
	w.running.Wait()
}

// sleep waits, and reports false where ctx has ended meanwhile.
func sleep(ctx context.Context, d time.Duration) bool {
	if d <= 0 {
		return ctx.Err() == nil
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
