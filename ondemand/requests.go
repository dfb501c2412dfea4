package ondemand

import (
	"context"
	"log/slog"
	"sync"
	"time"
)

// Requests is what transports have in common: the requests that were read from the
// kernel and are being answered. A transport ends them in this order: its Drain calls
// Leave, and Wait when it reads no more; its Close calls End, and then WaitAll.
type Requests struct {
	log       *slog.Logger
	successor bool

	ctx       context.Context // of all fills; ends with End
	cancel    context.CancelFunc
	recovered chan struct{}
	failed    chan error

	mu      sync.Mutex
	leaving bool
	// No WaitGroup: requests may start, from none on, while others wait for the end
	// of all.
	running int
	ended   *sync.Cond // none is running
}

// NewRequests has no requests yet. Successor says that the next daemon gets requests
// that are not answered.
func NewRequests(log *slog.Logger, successor bool) *Requests {
	r := &Requests{log: log, successor: successor, recovered: make(chan struct{}), failed: make(chan error, 1)}
	r.ended = sync.NewCond(&r.mu)
	r.ctx, r.cancel = context.WithCancel(context.Background())
	return r
}

// Context is the context of all fills. It ends with End.
func (r *Requests) Context() context.Context { return r.ctx }

// Recover implements Transport.
func (r *Requests) Recover() { close(r.recovered) }

// Early reports whether Recover was not called yet, so that blobs of live mounts may be
// missing.
func (r *Requests) Early() bool {
	select {
	case <-r.recovered:
		return false
	default:
		return true
	}
}

// Leaving reports whether a request that fails from now on is not answered, but left
// for the next daemon.
func (r *Requests) Leaving() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.leaving
}

// Leave leaves requests that fail for the next daemon, if one gets them.
func (r *Requests) Leave() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.leaving = r.successor
}

// Find looks up what a request is for. Until Recover it waits for what is not found at
// first: the mount of a dead daemon asks before its blob is attached.
func Find[T comparable](r *Requests, lookup func() T) T {
	var none T
	if found := lookup(); found != none {
		return found
	}
	select {
	case <-r.recovered:
	case <-r.ctx.Done():
	}
	return lookup()
}

// Go starts work that Wait and WaitAll wait for.
func (r *Requests) Go(f func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.start(f)
}

// start is Go; the caller holds mu.
func (r *Requests) start(f func()) {
	r.running++
	go func() {
		defer r.end()
		f()
	}()
}

func (r *Requests) end() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.running--; r.running == 0 {
		r.ended.Broadcast()
	}
}

// Start is Go for a request. It starts nothing and returns false when the request is
// left for the next daemon.
func (r *Requests) Start(f func()) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.leaving {
		return false
	}
	r.start(f)
	return true
}

// drainTime is how long Wait waits: longer than a fetch takes on a good line, shorter
// than a service manager waits before it kills the daemon.
const drainTime = 5 * time.Second

// Wait waits a while until what was started has ended.
func (r *Requests) Wait() {
	done := make(chan struct{})
	go func() { r.WaitAll(); close(done) }()
	select {
	case <-done:
	case <-time.After(drainTime):
	}
}

// End ends fills. Before Recover requests are left for the next daemon: their blobs are
// not attached, which must not fail them.
func (r *Requests) End() {
	if r.Early() {
		r.Leave()
	}
	r.cancel()
}

// WaitAll waits until all that was started has ended, which End makes soon.
func (r *Requests) WaitAll() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for r.running > 0 {
		r.ended.Wait()
	}
}

// LogFailure logs that a request could not be filled: its reader gets EIO or, when the
// transport is leaving, waits for the next daemon.
func (r *Requests) LogFailure(err error, args ...any) {
	args = append(args, "error", err)
	if r.Leaving() {
		r.log.Info("a read is left for the next daemon", args...)
		return
	}
	r.log.Error("read fails with EIO", args...)
}

// Fail says that no more requests can be read. It is called once at most.
func (r *Requests) Fail(err error) {
	r.log.Error("no more requests can be read from the kernel", "error", err)
	r.failed <- err
}

// Failed implements Transport.
func (r *Requests) Failed() <-chan error { return r.failed }
