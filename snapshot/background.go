package snapshot

import "time"

// start runs f beside all else until it returns or Close waits for it. After Close
// nothing is started.
func (l *Layers) start(f func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.ctx.Err() == nil {
		l.work.Go(f)
	}
}

// background starts what goes on until Close.
func (l *Layers) background() {
	l.start(l.settle)
	l.start(l.keepLimit)
	l.start(l.lookAfter)
	l.start(l.predictRestored)
	l.start(l.syncBlobs)
}

// syncEvery is how often what was filled is made durable: as often as the kernel
// writes out by itself (vm.dirty_expire_centisecs).
const syncEvery = 30 * time.Second

// syncBlobs makes what is filled survive a loss of power.
func (l *Layers) syncBlobs() {
	for sleep(l.ctx, syncEvery) {
		if err := l.Engine.Sync(l.ctx); err != nil && l.ctx.Err() == nil {
			l.Log.Error("making what was filled durable; what is not is fetched again", "error", err)
		}
	}
}

// lookEvery is how often lookAfter looks.
const lookEvery = 2 * time.Second

// lookAfter lets leaving layers go, makes quarantined ones again, and empties the
// trash.
func (l *Layers) lookAfter() {
	for sleep(l.ctx, lookEvery) {
		for _, d := range l.all() {
			view, _ := l.snapshotOf(d)
			var err error
			switch {
			case view.state == Leaving:
				err = l.with(l.ctx, d, l.left)
			case view.state == Quarantined && view.retry.due():
				err = l.with(l.ctx, d, l.again)
			}
			if err != nil && l.ctx.Err() == nil {
				l.Log.Warn("a layer is not as it should be; this is tried again", "layer", d, "state", view.state, "error", err)
			}
		}
		if err := l.dirs.emptyTrash(); err != nil {
			l.Log.Warn("emptying the trash", "error", err)
		}
	}
}

// again makes a quarantined layer that snapshots stand for again.
func (l *Layers) again(layer *Layer) error {
	uses, err := l.uses(l.ctx)
	if err != nil || layer.state != Quarantined || !uses[layer.digest].stands {
		return err
	}
	if err := l.ready(l.ctx, layer, uses[layer.digest].from, anyway); err != nil {
		return err
	}
	l.Log.Info("a quarantined layer was made again", "layer", layer.digest)
	return nil
}
