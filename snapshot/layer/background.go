package layer

import (
	"time"

	"github.com/opencontainers/go-digest"
)

// background starts what goes on until Close.
func (l *Set) background() {
	l.start(l.backfill)
	l.start(l.keepLimit)
	l.start(l.lookAfter)
	l.start(l.mend)
	l.start(l.predictRestored)
	l.start(l.syncBlobs)
}

// syncEvery is how often what was filled is made durable: as often as the kernel
// writes out by itself (vm.dirty_expire_centisecs).
const syncEvery = 30 * time.Second

// syncBlobs makes what is filled survive a loss of power.
func (l *Set) syncBlobs() {
	for sleep(l.ctx, syncEvery) {
		if err := l.Engine.Sync(l.ctx); err != nil && l.ctx.Err() == nil {
			l.Log.Error("making what was filled durable; what is not is fetched again", "error", err)
		}
	}
}

// lookEvery is how often lookAfter looks.
const lookEvery = 2 * time.Second

// lookAfter lets leaving layers go, and empties the trash.
func (l *Set) lookAfter() {
	for sleep(l.ctx, lookEvery) {
		for _, d := range l.all() {
			if view, _ := l.snapshotOf(d); view.state == Leaving {
				l.tried(d, view.state, l.with(l.ctx, d, l.left))
			}
		}
		if err := l.dirs.EmptyTrash(); err != nil {
			l.Log.Warn("emptying the trash", "error", err)
		}
	}
}

// mend makes quarantined layers again: one after the other of each registry, and the
// registries side by side, since one that does not answer takes makeTime a layer.
func (l *Set) mend() {
	var busy busy
	for sleep(l.ctx, lookEvery) {
		for registry, due := range l.due() {
			if !busy.take(registry) {
				continue
			}
			l.start(func() {
				defer busy.free(registry)
				for _, d := range due {
					l.tried(d, Quarantined, l.with(l.ctx, d, l.again))
				}
			})
		}
	}
}

// due lists the quarantined layers that should be tried again, by their registries.
func (l *Set) due() map[string][]digest.Digest {
	l.mu.Lock()
	defer l.mu.Unlock()
	list := map[string][]digest.Digest{}
	for d, layer := range l.layers {
		if layer.state != Quarantined || !layer.retry.due() {
			continue
		}
		registry := "" // not known without a directory
		if layer.files != nil {
			registry = registryOf(layer.files.Ref)
		}
		list[registry] = append(list[registry], d)
	}
	return list
}

func (l *Set) tried(d digest.Digest, s State, err error) {
	if err != nil && l.ctx.Err() == nil {
		l.Log.Warn("a layer is not as it should be; this is tried again", "layer", d, "state", s, "error", err)
	}
}

// again makes a quarantined layer that snapshots stand for again.
func (l *Set) again(layer *Layer) error {
	uses, err := l.uses(l.ctx)
	if err != nil || layer.state != Quarantined || !uses[layer.digest].Needed {
		return err
	}
	if err := l.ready(l.ctx, layer, uses[layer.digest].From, anyway); err != nil {
		return err
	}
	l.Log.Info("a quarantined layer was made again", "layer", layer.digest)
	return nil
}
