package registry

import (
	"context"
	"errors"
	"sync"
	"time"
)

// health remembers which hosts fail, so that a read does not wait for a dead
// mirror again and again. A host that fails is asked last, not never: where it is
// the only one, or the others have nothing, it still gets its chance.
type health struct {
	mu    sync.Mutex
	hosts map[string]*hostHealth // by base URL; as many as the configuration names
}

type hostHealth struct {
	answered bool      // at least once
	heard    time.Time // when a byte last came from it
	failures int       // in a row
	failed   time.Time // when the last one was
	until    time.Time // asked last until then
}

// How long a host is asked last: doubled with each failure in a row.
const (
	firstShun = 5 * time.Second
	maxShun   = 2 * time.Minute
)

func (h *health) of(key string) *hostHealth {
	if h.hosts == nil {
		h.hosts = map[string]*hostHealth{}
	}
	s := h.hosts[key]
	if s == nil {
		s = &hostHealth{}
		h.hosts[key] = s
	}
	return s
}

// shunned reports whether a host is to be asked after others. The first caller
// after its time tries it; those beside that one need not wait for the outcome.
func (h *health) shunned(key string) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	s := h.of(key)
	if s.failures == 0 {
		return false
	}
	now := time.Now()
	if now.Before(s.until) {
		return true
	}
	s.until = now.Add(shun(s.failures))
	return false
}

func shun(failures int) time.Duration { return min(maxShun, firstShun<<min(failures-1, 10)) }

// fail notes that a host gave nothing, unless it has spoken since began: a slow
// stream beside others that flow says nothing of the host. spoke is set where it
// answered, though with an error.
func (h *health) fail(key string, began time.Time, spoke bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	s := h.of(key)
	now := time.Now()
	s.answered = s.answered || spoke
	if s.heard.After(began) || s.failures > 0 && s.failed.After(began) {
		return // known already: tries side by side are one failure
	}
	s.failures++
	s.failed, s.until = now, now.Add(shun(s.failures))
}

// hear notes that something came from a host.
func (h *health) hear(key string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	s := h.of(key)
	s.answered, s.failures, s.heard = true, 0, time.Now()
}

func (h *health) answered(key string) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.of(key).answered
}

// note takes the outcome of one try at a host, which began at a time. e is nil where
// it went well.
func (h *health) note(ctx context.Context, key string, began time.Time, e *Error) {
	switch {
	case e == nil, e.Status != 0 && classOf(e) == retryNever && !e.misconfigured:
		h.hear(key)
	case errors.Is(ctx.Err(), context.Canceled):
		// Nobody wants the answer any more; that says nothing.
	default:
		h.fail(key, began, e.Status != 0 && !e.misconfigured)
	}
}
