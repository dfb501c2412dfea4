package ondemand

import (
	"container/list"
	"context"
	"sync"
)

// budget bounds the fetches that run at once. What readers wait for goes
// first, and background work never takes the last places.
type budget struct {
	mu         sync.Mutex
	free       int
	background int // places that background work may still take
	urgent     list.List
	idle       list.List
}

// turn is a place in the queue or, once granted, in the budget.
type turn struct {
	b       *budget
	urgent  bool
	counted bool // against background
	at      *list.Element
	granted chan struct{}
}

func newBudget(places, background int) *budget {
	return &budget{free: places, background: background}
}

// queue asks for a place.
func (b *budget) queue(urgent bool) *turn {
	b.mu.Lock()
	defer b.mu.Unlock()
	t := &turn{b: b, urgent: urgent, granted: make(chan struct{})}
	if urgent {
		t.at = b.urgent.PushBack(t)
	} else {
		t.at = b.idle.PushBack(t)
	}
	b.grant()
	return t
}

// grant gives free places away.
func (b *budget) grant() {
	for b.free > 0 {
		var t *turn
		switch {
		case b.urgent.Len() > 0:
			t = b.urgent.Remove(b.urgent.Front()).(*turn)
		case b.idle.Len() > 0 && b.background > 0:
			t = b.idle.Remove(b.idle.Front()).(*turn)
			t.counted = true
			b.background--
		default:
			return
		}
		b.free--
		t.at = nil
		close(t.granted)
	}
}

// hurry moves a turn that still waits among the urgent ones.
func (t *turn) hurry() {
	t.b.mu.Lock()
	defer t.b.mu.Unlock()
	if t.at == nil || t.urgent {
		return
	}
	t.b.idle.Remove(t.at)
	t.urgent = true
	t.at = t.b.urgent.PushBack(t)
	t.b.grant()
}

// wait returns when the place is granted. After an error there is none to
// release.
func (t *turn) wait(ctx context.Context) error {
	select {
	case <-t.granted:
		return nil
	case <-ctx.Done():
	}
	t.b.mu.Lock()
	defer t.b.mu.Unlock()
	if t.at == nil {
		t.release()
	} else if t.urgent {
		t.b.urgent.Remove(t.at)
	} else {
		t.b.idle.Remove(t.at)
	}
	return ctx.Err()
}

// done gives the place back.
func (t *turn) done() {
	t.b.mu.Lock()
	defer t.b.mu.Unlock()
	t.release()
}

func (t *turn) release() {
	t.b.free++
	if t.counted {
		t.b.background++
	}
	t.b.grant()
}
