package registry

import (
	"context"
	"errors"
	"net/http"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/lacuna-snapshotter/lacuna/fetcher/registry/registrytest"
)

// told collects what a client tells of its troubles.
type told struct {
	mu   sync.Mutex
	list []Trouble
	over []bool
	any  chan struct{} // one for each
}

func newTold() *told { return &told{any: make(chan struct{}, 1000)} }

func (n *told) notify(t Trouble, over bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.list, n.over = append(n.list, t), append(n.over, over)
	n.any <- struct{}{}
}

// TestTroubleIsToldEarly has a registry that takes a request and gives nothing: that
// is told long before the time-outs, once, and its end too.
func TestTroubleIsToldEarly(t *testing.T) {
	for name, fault := range map[string]registrytest.Fault{"no answer": registrytest.Silent, "no body": registrytest.Hang} {
		t.Run(name, func(t *testing.T) {
			reg := registrytest.New(t)
			n := newTold()
			b := newBlob(t, reg, content(10), Options{Stall: 2 * time.Second, Notify: n.notify})
			reg.Fail(fault)
			done := make(chan error, 1)
			go func() { done <- b.ReadAt(t.Context(), make([]byte, 10), 0) }()
			<-n.any
			select {
			case err := <-done:
				t.Fatal("told after the try was over", err)
			default:
			}
			if list := b.repo.client.Troubles(); len(list) != 1 || list[0].Registry != reg.Host() || list[0].Error == "" {
				t.Errorf("%+v", list)
			}
			if err := <-done; err != nil {
				t.Fatal(err)
			}
			if list := b.repo.client.Troubles(); len(list) != 0 {
				t.Errorf("after a success: %+v", list)
			}
			if len(n.over) != 2 || n.over[0] || !n.over[1] {
				t.Errorf("told %+v %v", n.list, n.over)
			}
		})
	}
}

// TestTroubleOfImpatientReaders gives readers less time than a stall takes.
func TestTroubleOfImpatientReaders(t *testing.T) {
	reg := registrytest.New(t)
	b := newBlob(t, reg, content(10), Options{Stall: time.Minute})
	reg.Fail(registrytest.Silent)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := b.ReadAt(ctx, make([]byte, 10), 0); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatal(err)
	}
	if list := b.repo.client.Troubles(); len(list) != 1 || list[0].Failures != 1 {
		t.Errorf("%+v", list)
	}
	// A reader who was cancelled says nothing of the registry.
	b = newBlob(t, reg, content(10), Options{Stall: time.Minute})
	reg.Fail(registrytest.Silent)
	ctx, cancel = context.WithCancel(t.Context())
	time.AfterFunc(20*time.Millisecond, cancel)
	if err := b.ReadAt(ctx, make([]byte, 10), 0); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	if list := b.repo.client.Troubles(); len(list) != 0 {
		t.Errorf("%+v", list)
	}
}

// TestStallIsTrouble ends a stalled body and names the reason.
func TestStallIsTrouble(t *testing.T) {
	reg := registrytest.New(t)
	n := newTold()
	b := newBlob(t, reg, content(10), Options{Stall: 50 * time.Millisecond, Notify: n.notify})
	reg.Fail(repeat(registrytest.Hang, 9)...)
	if err := b.ReadAt(t.Context(), make([]byte, 10), 0); !errors.Is(err, errStall) {
		t.Error(err)
	}
	if list := b.repo.client.Troubles(); len(list) != 1 || list[0].Failures != quick.Attempts {
		t.Errorf("%+v", list)
	}
}

// TestTroubleEnds has nobody ask any more, as when the image is gone.
func TestTroubleEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, err := New(Options{})
		if err != nil {
			t.Fatal(err)
		}
		repo, _, err := c.Repository("registry.example/a/b:c")
		if err != nil {
			t.Fatal(err)
		}
		failing := errors.New("down")
		for range 3 {
			_ = repo.doPolicy(t.Context(), Retry{Attempts: 1}, false, func() error { return failing })
			time.Sleep(unused / 2)
			if list := c.Troubles(); len(list) != 1 {
				t.Errorf("in use: %+v", list)
			}
		}
		time.Sleep(unused)
		if list := c.Troubles(); len(list) != 0 {
			t.Errorf("not in use: %+v", list)
		}
	})
}

// TestRefusalIsTroubleOfOneRepository does not end and begin with every read of
// another.
func TestRefusalIsTroubleOfOneRepository(t *testing.T) {
	reg := registrytest.New(t)
	n := newTold()
	b := newBlob(t, reg, content(10), Options{Notify: n.notify})
	other, _, err := b.repo.client.Repository(reg.Host() + "/other/image:1")
	if err != nil {
		t.Fatal(err)
	}
	refused := other.Content(b.desc)
	for range 3 {
		reg.Fail(registrytest.Status(http.StatusForbidden, ""))
		if err := refused.ReadAt(t.Context(), make([]byte, 1), 0); !errors.Is(err, ErrUnauthorized) {
			t.Fatal(err)
		}
		if err := b.ReadAt(t.Context(), make([]byte, 1), 0); err != nil {
			t.Fatal(err)
		}
	}
	if list := b.repo.client.Troubles(); len(list) != 1 || list[0].Registry != other.Name() || len(n.list) != 1 {
		t.Errorf("%+v, told %+v", list, n.list)
	}
}

// TestSleep follows one request through its waits, in which its owner may lend out
// what others can use.
func TestSleep(t *testing.T) {
	reg := registrytest.New(t)
	slept := 0
	b := newBlob(t, reg, content(10), Options{Retry: Retry{Sleep: func(ctx context.Context, _ time.Duration) error {
		slept++
		return ctx.Err()
	}}})
	reg.Fail(registrytest.Status(503, ""), registrytest.Status(503, ""))
	if err := b.ReadAt(t.Context(), make([]byte, 10), 0); err != nil || slept != 2 {
		t.Errorf("%v, slept %d times", err, slept)
	}
	full := errors.New("no place")
	b = newBlob(t, reg, content(10), Options{Retry: Retry{Sleep: func(context.Context, time.Duration) error { return full }}})
	reg.Fail(registrytest.Status(503, ""))
	if err := b.ReadAt(t.Context(), make([]byte, 10), 0); !errors.Is(err, full) {
		t.Errorf("the place was not given back: %v", err)
	}
}
