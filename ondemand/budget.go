package ondemand

import (
	"container/list"
	"slices"
	"sync"
)

// budget is the places for fetches that run at once: the node's, which groups
// share, and one of each group's own.
type budget struct {
	mu         sync.Mutex
	free       int // places of the node's
	background int // of these, how many background work may still take

	perGroup           int // places of the node's that one group may have
	perGroupBackground int // of these, at most so many for background work

	groups map[string]*group
	round  []*group // all of them; the one that got a place goes to the end
}

// group is the turns of one registry's blobs: if it does not answer, other groups must
// keep their places.
type group struct {
	name       string
	turns      int       // that are not over
	urgent     list.List // of *turn
	idle       list.List
	shared     int  // places of the node's that it has
	background int  // of these, for background work
	own        bool // its own place is taken
}

// place is what a turn has been granted.
type place int

const (
	noPlace    place = iota
	shared           // of the node's
	background       // of the node's, and counted against background work
	own              // the group's own
)

func newBudget(o Options) *budget {
	return &budget{
		free: o.Fetches, background: o.Background,
		perGroup: o.PerGroup, perGroupBackground: min(o.PerGroup, max(1, o.Background*3/4)),
		groups: map[string]*group{},
	}
}

// queue asks for a place. The turn must be given to done.
func (b *budget) queue(name string, urgent bool) *turn {
	b.mu.Lock()
	defer b.mu.Unlock()
	g := b.groups[name]
	if g == nil {
		g = &group{name: name}
		b.groups[name] = g
		b.round = append(b.round, g)
	}
	g.turns++
	t := &turn{budget: b, group: g, urgent: urgent}
	t.enqueue()
	return t
}

// grant gives free places away, to readers first and to one group after the
// other.
func (b *budget) grant() {
	for b.grantOne(true) || b.grantOne(false) {
	}
}

func (b *budget) grantOne(urgent bool) bool {
	for i, g := range b.round {
		p, queue := b.placeFor(g, urgent), &g.idle
		if urgent {
			queue = &g.urgent
		}
		if p == noPlace || queue.Len() == 0 {
			continue
		}
		b.take(g, p, 1)
		t := queue.Remove(queue.Front()).(*turn)
		t.at, t.place = nil, p
		close(t.granted)
		b.round = append(slices.Delete(b.round, i, i+1), g)
		return true
	}
	return false
}

// placeFor is the place that a group could be given now.
func (b *budget) placeFor(g *group, urgent bool) place {
	free := b.free > 0 && g.shared < b.perGroup
	switch {
	case urgent && free:
		return shared
	case urgent && !g.own:
		return own
	case !urgent && free && b.background > 0 && g.background < b.perGroupBackground:
		return background
	}
	return noPlace
}

// take gives a group n places of a kind, or takes them back where n is negative.
func (b *budget) take(g *group, p place, n int) {
	switch p {
	case own:
		g.own = n > 0
	case background:
		b.background -= n
		g.background += n
		fallthrough
	case shared:
		b.free -= n
		g.shared += n
	}
}

// leave forgets a group without turns.
func (b *budget) leave(g *group) {
	g.turns--
	if g.turns == 0 {
		delete(b.groups, g.name)
		b.round = slices.DeleteFunc(b.round, func(o *group) bool { return o == g })
	}
}
