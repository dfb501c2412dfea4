package registry

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"
)

// Trouble says that a registry does not give what is asked of it.
type Trouble struct {
	Registry string    `json:"registry"` // its host, and the repository where only that is refused
	Since    time.Time `json:"since"`
	Failures int       `json:"failures"` // tries since then, none of which went well
	Error    string    `json:"error"`    // of the last one
}

// troubles are the registries that failed the last time they were asked. A try that
// succeeds ends a registry's trouble. So does a time in which the node sends it no
// request, since then nothing depends on it.
type troubles struct {
	notify func(Trouble, bool)

	mu   sync.Mutex
	list map[string]*trouble // by Trouble.Registry
}

type trouble struct {
	Trouble
	last time.Time
}

// unused is how long a trouble is kept when no request meets it any more. Tries that
// are repeated come at most Retry.MaxAfter and a few time-outs apart.
const unused = 5 * time.Minute

// try is one try under way. Its fields are the troubles' to guard.
type try struct {
	repo *Repository
	over bool
}

// begin starts a try. A try without an answer after a while is trouble already, so that
// it is reported before the time-out, and also where the reader's own time-out is
// shorter.
func (t *troubles) begin(r *Repository) (*try, *time.Timer) {
	y := &try{repo: r}
	late := r.client.late()
	return y, time.AfterFunc(late, func() {
		t.set(y, r.registry, fmt.Sprintf("no answer for %v", late), true)
	})
}

// end takes the outcome of a try.
func (t *troubles) end(ctx context.Context, y *try, err error) {
	switch {
	case err == nil:
		t.clear(y)
	case NotFound(err): // an answer
		t.clear(y)
	case errors.Is(ctx.Err(), context.Canceled):
		t.finish(y) // the reader has given up: that says nothing of the registry
	case errors.Is(err, ErrUnauthorized):
		t.set(y, y.repo.Name(), err.Error(), false)
	default:
		t.set(y, y.repo.registry, err.Error(), false)
	}
}

func (t *troubles) finish(y *try) {
	t.mu.Lock()
	defer t.mu.Unlock()
	y.over = true
}

func (t *troubles) set(y *try, name, text string, late bool) {
	t.mu.Lock()
	if y.over {
		t.mu.Unlock()
		return
	}
	y.over = !late
	now := time.Now()
	t.expire(now)
	entry := t.list[name]
	began := entry == nil
	if began {
		if t.list == nil {
			t.list = map[string]*trouble{}
		}
		entry = &trouble{Trouble: Trouble{Registry: name, Since: now.UTC()}}
		t.list[name] = entry
	}
	if !late {
		entry.Failures++
	}
	if began || !late {
		entry.Error = text // "no answer" says less than the error before it
	}
	entry.last = now
	told := entry.Trouble
	t.mu.Unlock()
	if began && t.notify != nil {
		t.notify(told, false)
	}
}

func (t *troubles) clear(y *try) {
	t.mu.Lock()
	y.over = true
	var ended []Trouble
	for _, name := range []string{y.repo.registry, y.repo.Name()} {
		if entry := t.list[name]; entry != nil {
			delete(t.list, name)
			ended = append(ended, entry.Trouble)
		}
	}
	t.mu.Unlock()
	for _, told := range ended {
		if t.notify != nil {
			t.notify(told, true)
		}
	}
}

// expire drops what no request has met for a while.
func (t *troubles) expire(now time.Time) {
	for name, entry := range t.list {
		if now.Sub(entry.last) > unused {
			delete(t.list, name)
		}
	}
}

// Troubles lists the registries in trouble, by name.
func (c *Client) Troubles() []Trouble {
	c.troubles.mu.Lock()
	defer c.troubles.mu.Unlock()
	c.troubles.expire(time.Now())
	list := []Trouble{}
	for _, t := range c.troubles.list {
		list = append(list, t.Trouble)
	}
	slices.SortFunc(list, func(a, b Trouble) int { return strings.Compare(a.Registry, b.Registry) })
	return list
}

// do calls f within the retry policy and notes the outcome of each try.
func (r *Repository) do(ctx context.Context, patient bool, f func() error) error {
	return r.doPolicy(ctx, r.client.opts.Retry, patient, f)
}

func (r *Repository) doPolicy(ctx context.Context, policy Retry, patient bool, f func() error) error {
	return policy.do(ctx, patient, func() error {
		y, timer := r.client.troubles.begin(r)
		err := f()
		timer.Stop()
		r.client.troubles.end(ctx, y, err)
		return err
	})
}
