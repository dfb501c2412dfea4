package main

import (
	"context"
	"errors"
	"fmt"
)

// plan is how often each fault is injected.
type plan struct{ kills, points, pairs, all, cuts, fulls int }

// points are where a test build of the daemon dies, see internal/fault.
var points = []string{"request read", "span written", "before the answer", "after the answer"}

// trial is one kind of fault, and what readers may see of it.
type trial struct {
	what  string
	times int
	run   func() (seen, error)
	goal  string
	met   func(seen) bool
}

// clean is for faults that readers must not notice, failing for those that may give them
// EIO.
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

// trials are those of a plan on one transport. The last one has no anchor.
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
