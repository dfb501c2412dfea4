package ondemand

import (
	"container/list"
	"context"
	"time"
)

// turn is a fetch in the budget: it waits for a place, has one, or has given it
// back for a while. Its fields are guarded by the budget's mu.
type turn struct {
	budget  *budget
	group   *group
	urgent  bool
	at      *list.Element // in one of the group's queues
	granted chan struct{} // closed at the end of the present or last wait
	place   place
	over    bool
}

// enqueue begins a wait for a place, under mu.
func (t *turn) enqueue() {
	t.granted = make(chan struct{})
	t.push()
}

// push joins the queue that the turn belongs in.
func (t *turn) push() {
	if t.urgent {
		t.at = t.group.urgent.PushBack(t)
	} else {
		t.at = t.group.idle.PushBack(t)
	}
	t.budget.grant()
}

// hurry says that a reader waits for the fetch now.
func (t *turn) hurry() {
	t.budget.mu.Lock()
	defer t.budget.mu.Unlock()
	if t.urgent {
		return
	}
	if t.at == nil {
		t.urgent = true // for when it comes back
		return
	}
	t.dequeue()
	t.urgent = true
	t.push()
}

// dequeue ends the wait for a place, under mu.
func (t *turn) dequeue() {
	switch {
	case t.at == nil:
	case t.urgent:
		t.group.urgent.Remove(t.at)
	default:
		t.group.idle.Remove(t.at)
	}
	t.at = nil
}

// wait returns when the turn has a place, or with ctx's error.
func (t *turn) wait(ctx context.Context) error {
	t.budget.mu.Lock()
	granted := t.granted
	t.budget.mu.Unlock()
	select {
	case <-granted:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// release gives the place back, if there is one, under mu.
func (t *turn) release() {
	t.budget.take(t.group, t.place, -1)
	t.place = noPlace
	t.budget.grant()
}

// pause gives the place back until resume.
func (t *turn) pause() {
	t.budget.mu.Lock()
	defer t.budget.mu.Unlock()
	t.release()
}

// resume asks for a place again, unless that was done already.
func (t *turn) resume() {
	t.budget.mu.Lock()
	defer t.budget.mu.Unlock()
	if t.place == noPlace && t.at == nil && !t.over {
		t.enqueue()
	}
}

// done is the end of the turn, whether it has a place or not.
func (t *turn) done() {
	t.budget.mu.Lock()
	defer t.budget.mu.Unlock()
	t.over = true
	t.dequeue()
	t.release()
	t.budget.leave(t.group)
}

type turnKey struct{}

func withTurn(ctx context.Context, t *turn) context.Context {
	return context.WithValue(ctx, turnKey{}, t)
}

// Sleep sleeps for d, or until ctx ends, whose error it returns then. Where ctx
// is of a Source's Fetch, the fetch's place is given back meanwhile, and Sleep
// returns when it has one again: a source calls it where it waits before it tries
// again. It may be called by several goroutines of a fetch, whose place is gone when
// the first of them sleeps. Its signature has no type of this package, so that
// packages that do not import this one can be given it.
func Sleep(ctx context.Context, d time.Duration) error {
	t, _ := ctx.Value(turnKey{}).(*turn)
	if t != nil {
		t.pause()
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	var err error
	select {
	case <-timer.C:
	case <-ctx.Done():
		err = ctx.Err()
	}
	if t == nil {
		return err
	}
	t.resume() // also after an error: others of the fetch may go on
	if err == nil {
		err = t.wait(ctx)
	}
	return err
}
