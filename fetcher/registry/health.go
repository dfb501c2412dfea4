package registry

import (
	"context"
	"errors"
	"sync"
	"time"
)

// health remembers which hosts fail, so that reads do not wait for a dead mirror again
// and again. A host that fails is asked last, not never: it may be the only one, or the
// others may have nothing.
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
	firstAvoid = 5 * time.Second
	mostAvoid  = 2 * time.Minute
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

// avoided reports whether a host is to be asked after others. The first caller
// after its time tries it; those beside that one need not wait for the outcome.
func (h *health) avoided(key string) bool {
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
	s.until = now.Add(avoidFor(s.failures))
	return false
}

func avoidFor(failures int) time.Duration { return min(mostAvoid, firstAvoid<<min(failures-1, 10)) }

// fail notes that a host gave nothing, unless it has sent something since began: a
// slow stream beside others that flow says nothing of the host. spoke is set where the
// host answered, though with an error.
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
	s.failed, s.until = now, now.Add(avoidFor(s.failures))
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
		// The reader has given up: that says nothing of the host.
	default:
		h.fail(key, began, e.Status != 0 && !e.misconfigured)
	}
}
