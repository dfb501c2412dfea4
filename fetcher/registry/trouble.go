package registry

import (
	"context"
	"errors"
	"sync"
	"time"
)

// Trouble says that a registry does not give what is asked of it.
type Trouble struct {
	Registry string    `json:"registry"`
	Since    time.Time `json:"since"`
	Failures int       `json:"failures"` // tries since then, none of which went well
	Error    string    `json:"error"`    // of the last one
}

// troubles are the registries that failed the last time they were asked. A try
// that goes well ends a registry's trouble.
type troubles struct {
	mu   sync.Mutex
	list map[string]Trouble
}

// note takes the outcome of one try.
func (t *troubles) note(ctx context.Context, registry string, err error) {
	if ctx.Err() != nil || errors.Is(err, context.Canceled) || NotFound(err) {
		return // nobody wants it any more, or the answer is an answer
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if err == nil {
		delete(t.list, registry)
		return
	}
	now, known := t.list[registry]
	if !known {
		now = Trouble{Registry: registry, Since: time.Now().UTC()}
	}
	now.Failures++
	now.Error = err.Error()
	if t.list == nil {
		t.list = map[string]Trouble{}
	}
	t.list[registry] = now
}

// Troubles lists the registries in trouble.
func (c *Client) Troubles() []Trouble {
	c.troubles.mu.Lock()
	defer c.troubles.mu.Unlock()
	list := []Trouble{}
	for _, t := range c.troubles.list {
		list = append(list, t)
	}
	return list
}

// do calls f within the retry policy and notes how each try went.
func (r *Repository) do(ctx context.Context, patient bool, f func() error) error {
	return r.client.opts.Retry.do(ctx, patient, func() error {
		err := f()
		r.client.troubles.note(ctx, r.registry, err)
		return err
	})
}
