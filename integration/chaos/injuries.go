package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/lacuna-snapshotter/lacuna/integration/harness"
)

func (n *node) killDaemon(context.Context) error {
	n.daemon.Kill()
	return n.start()
}

// killPair kills the daemon with one of its keepers, in either order, as soon as
// two hold the transport: one that is killed and one that is left.
func (n *node) killPair(context.Context) error {
	var pids []int
	for range 6000 {
		var err error
		if pids, err = n.holders(); err != nil {
			return err
		}
		if len(pids) >= 2 {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	if len(pids) < 2 {
		return fmt.Errorf("%d keepers hold the transport", len(pids))
	}
	victims := []int{pids[rand.IntN(len(pids))], n.daemon.PID()}
	if rand.IntN(2) == 0 {
		slices.Reverse(victims)
	}
	killAt(victims...)
	<-n.daemon.Done()
	return n.start()
}

// cutLine cuts the line to the registry, and leaves it whole for longer than the
// daemon waits before it tries again.
func (n *node) cutLine(ctx context.Context) error {
	n.link.Cut()
	err := pause(ctx, time.Second+time.Duration(rand.IntN(2000))*time.Millisecond)
	n.link.Mend()
	return errors.Join(err, pause(ctx, 4*time.Second))
}

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// fillDisk takes all room from the daemon's disk under a reading container, and
// gives it back.
func (n *node) fillDisk(ctx context.Context, times int) (total seen, err error) {
	for range times {
		if err := errors.Join(n.pullLazily(ctx), harness.DropCaches()); err != nil {
			return total, err
		}
		c, err := n.read(ctx, 1)
		if err != nil {
			return total, err
		}
		select {
		case <-c.started:
		case <-c.done:
			return total, c.err
		}
		empty, err := n.env.FillDisk()
		if err != nil {
			return total, err
		}
		time.Sleep(time.Duration(100+rand.IntN(400)) * time.Millisecond)
		err = empty()
		<-c.done
		total.add(c.seen)
		if err := errors.Join(err, c.err, n.rightAgain(ctx), n.forget(ctx)); err != nil {
			return total, err
		}
	}
	return total, nil
}
