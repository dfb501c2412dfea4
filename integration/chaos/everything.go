package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"time"

	"github.com/lacuna-snapshotter/lacuna/integration/harness"
)

// killEverything kills the daemon, all keepers and the anchor, and starts the next daemon
// a moment later. Then it checks that what may be wrong was reported, and that new
// containers read right bytes.
func (n *node) killEverything(ctx context.Context, times int) (total seen, err error) {
	for range times {
		if err := errors.Join(n.pullLazily(ctx), harness.DropCaches()); err != nil {
			return total, err
		}
		passes := 1
		if n.throughLoop() {
			passes = 4 // each takes 3 s while no daemon serves: the last one begins when the next daemon does
		}
		c, err := n.read(ctx, passes)
		if err != nil {
			return total, err
		}
		select {
		case <-c.started:
		case <-c.done:
			return total, c.err
		}
		time.Sleep(time.Duration(rand.IntN(400)) * time.Millisecond)
		running := true
		select {
		case <-c.done:
			running = false
		default:
		}
		pids, err := n.keepers()
		if err != nil {
			return total, err
		}
		anchors, err := n.anchors()
		if err == nil && len(anchors) > 0 != n.anchored {
			err = fmt.Errorf("%d anchors", len(anchors))
		}
		if err != nil {
			return total, err
		}
		// The daemon first: it would start other keepers.
		killAt(append(append([]int{n.daemon.PID()}, pids...), anchors...)...)
		<-n.daemon.Done()
		time.Sleep(time.Duration(rand.IntN(200)) * time.Millisecond)
		if err := errors.Join(n.start(), n.containerd.Reconnect(ctx)); err != nil {
			return total, err
		}
		reported := false
		if running {
			if reported, err = n.reported(ctx, c.id); err != nil {
				return total, err
			}
			if reported && n.anchored {
				return total, errors.New("a container is reported though it was served")
			}
		}
		<-c.done
		if c.seen.wrong > 0 {
			if reported {
				c.seen.reported++
			} else {
				c.seen.unreported++
			}
		}
		if n.throughLoop() && c.last > 0 {
			return total, fmt.Errorf("%d reads of a container that runs on failed after the start", c.last)
		}
		total.add(c.seen)
		if err := errors.Join(n.rightAgain(ctx), n.forget(ctx)); err != nil {
			return total, err
		}
	}
	return total, nil
}

// rightAgain has a new container read everything.
func (n *node) rightAgain(ctx context.Context) error {
	c, err := n.read(ctx, 1)
	if err != nil {
		return err
	}
	<-c.done
	if c.err != nil || c.seen.wrong+c.seen.failed > 0 || c.seen.passes != 1 {
		return fmt.Errorf("a new container read wrong bytes: %+v: %w\n%s", c.seen, c.err, n.daemon.Tail())
	}
	return nil
}

// reported tells whether the daemon names a container among those that were not
// served.
func (n *node) reported(ctx context.Context, id string) (bool, error) {
	st, err := n.status(ctx)
	if err != nil {
		return false, err
	}
	for _, u := range st.Unserved {
		for _, key := range u.Snapshots {
			if strings.HasSuffix(key, "/"+id) {
				return true, nil
			}
		}
	}
	return false, nil
}
