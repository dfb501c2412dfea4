package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/lacuna-snapshotter/lacuna/integration/harness"
)

// plan is how often each injury is done.
type plan struct{ kills, points, pairs, all, cuts, fulls int }

// points are where a test build of the daemon dies, see internal/fault.
var points = []string{"request read", "span written", "before the answer", "after the answer"}

// trial is one kind of injury, and what readers may see of it.
type trial struct {
	what  string
	times int
	run   func() (seen, error)
	goal  string
	met   func(seen) bool
}

// clean is for what readers must not notice, failing for what may give them EIO.
func clean(t trial) trial {
	t.goal = "0 wrong, 0 failed"
	t.met = func(s seen) bool { return s.wrong == 0 && s.failed == 0 && s.files > 0 }
	return t
}

func failing(t trial) trial {
	t.goal = "0 wrong, EIO only, then right again"
	t.met = func(s seen) bool { return s.wrong == 0 && s.files > 0 }
	return t
}

// trials is a plan on one transport. The last ones go without an anchor.
func (n *node) trials(ctx context.Context, p plan) []trial {
	injure := func(times int, how func(context.Context) error) func() (seen, error) {
		return func() (seen, error) { return n.injure(ctx, times, how) }
	}
	list := []trial{clean(trial{what: "daemon killed", times: p.kills, run: injure(p.kills, n.killDaemon)})}
	for _, point := range points {
		list = append(list, clean(trial{what: "daemon dies: " + point, times: p.points, run: func() (seen, error) {
			return n.dieAt(ctx, point, p.points)
		}}))
	}
	list = append(list,
		clean(trial{what: "daemon killed while it completes layers", times: p.kills / 5, run: func() (seen, error) {
			n.backfill = true
			s, err := n.injure(ctx, p.kills/5, n.killDaemon)
			n.backfill = false
			return s, errors.Join(err, n.killDaemon(ctx))
		}}),
		clean(trial{what: "daemon and a keeper killed together", times: p.pairs, run: injure(p.pairs, n.killPair)}),
		clean(trial{what: "registry unreachable for 1 to 3 s", times: p.cuts, run: injure(p.cuts, n.cutLine)}),
		failing(trial{what: "cache disk full for a moment", times: p.fulls, run: func() (seen, error) {
			return n.fillDisk(ctx, p.fulls)
		}}),
		clean(trial{what: "daemon, all keepers and the anchor killed at once", times: p.all, run: func() (seen, error) {
			return n.killEverything(ctx, p.all)
		}}))
	bare := failing(trial{what: "daemon and all keepers killed at once, without an anchor", times: p.all, run: func() (seen, error) {
		n.anchored = false
		if err := n.killDaemon(ctx); err != nil {
			return seen{}, err
		}
		return n.killEverything(ctx, p.all)
	}})
	switch {
	case n.throughLoop():
		bare.goal = "0 wrong, EIO only, then right again in the same container"
	case n.transport == "fanotify":
		bare.goal = "nothing wrong goes unreported, then right again"
		bare.met = func(s seen) bool { return s.unreported == 0 && s.files > 0 }
	}
	return append(list, bare)
}

// chaos goes through a plan.
func (n *node) chaos(ctx context.Context, p plan) (rows []row, err error) {
	for _, t := range n.trials(ctx, p) {
		if t.times == 0 {
			continue
		}
		s, err := t.run()
		if err != nil {
			return rows, fmt.Errorf("transport %s: %s: %w", n.transport, t.what, err)
		}
		r := row{n.transport, t.what, t.times, s, t.met(s), t.goal}
		rows = append(rows, r)
		fmt.Println(r)
	}
	return rows, nil
}

// injure does something to a node again and again while containers read.
func (n *node) injure(ctx context.Context, times int, how func(context.Context) error) (total seen, err error) {
	for done := 0; done < times; {
		s, err := n.round(ctx, func(over <-chan struct{}) error {
			for ; done < times; done++ {
				select {
				case <-over:
					return nil
				case <-time.After(time.Duration(rand.IntN(120)) * time.Millisecond):
				}
				if err := how(ctx); err != nil {
					return err
				}
				if done%4 == 0 {
					if err := harness.DropCaches(); err != nil {
						return err
					}
				}
			}
			return nil
		})
		total.add(s)
		if err != nil {
			return total, err
		}
	}
	return total, nil
}

// readers is how many containers read at once, passes how often they read all.
const (
	readers = 2
	passes  = 3
)

// round pulls the image anew, has containers read it, and does what is to be
// done meanwhile.
func (n *node) round(ctx context.Context, meanwhile func(over <-chan struct{}) error) (total seen, err error) {
	if err := errors.Join(n.pullLazily(ctx), harness.DropCaches()); err != nil {
		return total, err
	}
	var list []*container
	over := make(chan struct{})
	for range readers {
		c, err := n.read(ctx, passes)
		if err != nil {
			return total, err
		}
		list = append(list, c)
	}
	for _, c := range list { // the runtime's own reads are not what is tried
		select {
		case <-c.started:
		case <-c.done:
			return total, errors.Join(errors.New("a container ended before it began"), c.err)
		}
	}
	go func() {
		defer close(over)
		for _, c := range list {
			<-c.done
		}
	}()
	if err := meanwhile(over); err != nil { // nobody may be there to serve them
		return total, fmt.Errorf("%w\n%s", err, n.daemon.Tail())
	}
	for _, c := range list {
		<-c.done
		err = errors.Join(err, c.err)
		total.add(c.seen)
	}
	if err != nil {
		return total, fmt.Errorf("%w\n%s", err, n.daemon.Tail())
	}
	return total, n.forget(ctx)
}

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

// program is a build of the daemon that can die at a point.
const program = "lacuna-snapshotter-faults"

// buildFaults makes that build.
func buildFaults(ctx context.Context, top string) error {
	build := exec.CommandContext(ctx, "go", "build", "-tags", "faults", "-o", filepath.Join(top, ".cache", "bin", program), "./cmd/lacuna-snapshotter")
	build.Dir = top
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("build %s: %w\n%s", program, err, out)
	}
	return nil
}

// dieAt runs a build of the daemon that dies at a point, and starts it again each
// time.
func (n *node) dieAt(ctx context.Context, point string, times int) (total seen, err error) {
	deaths := 0
	for deaths < times {
		s, err := n.round(ctx, func(over <-chan struct{}) (err error) {
			n.env.Daemon, n.env.Environ = program, []string{"LACUNA_FAULT=" + point + "=1/40"}
			defer func() { // one that lives, for what the readers have left to do
				n.env.Daemon, n.env.Environ = "", nil
				n.daemon.Kill()
				err = errors.Join(err, n.start())
			}()
			n.daemon.Kill()
			for deaths < times {
				if err := n.start(); err != nil && !strings.Contains(err.Error(), "ended") {
					return err
				}
				select {
				case <-n.daemon.Done():
					deaths++
				case <-over:
					return nil
				case <-time.After(300 * time.Millisecond): // it has nothing to do
					if err := harness.DropCaches(); err != nil {
						return err
					}
				}
				select {
				case <-n.daemon.Done():
				default:
					n.daemon.Kill()
				}
			}
			return nil
		})
		total.add(s)
		if err != nil {
			return total, err
		}
	}
	return total, nil
}

// killEverything kills the daemon, all keepers and the anchor, with a moment in
// which nobody serves; then looks that what may be wrong was reported, and that
// new containers read right bytes.
func (n *node) killEverything(ctx context.Context, times int) (total seen, err error) {
	for range times {
		if err := errors.Join(n.pullLazily(ctx), harness.DropCaches()); err != nil {
			return total, err
		}
		passes := 1
		if n.throughLoop() {
			passes = 4 // each takes 3 s while nobody serves: the last begins when somebody does
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
		// The daemon first, which would start other keepers.
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
		err = n.full(func() { time.Sleep(time.Duration(100+rand.IntN(400)) * time.Millisecond) })
		<-c.done
		total.add(c.seen)
		if err := errors.Join(err, c.err, n.rightAgain(ctx), n.forget(ctx)); err != nil {
			return total, err
		}
	}
	return total, nil
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
