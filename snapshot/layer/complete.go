package layer

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/lacuna-snapshotter/lacuna/ondemand"
)

// syncEvery is how often filled bytes are made durable: as often as the kernel writes
// back by itself (vm.dirty_expire_centisecs).
const syncEvery = 30 * time.Second

// syncBlobs makes filled bytes survive a loss of power.
func (l *Set) syncBlobs() {
	for sleep(l.ctx, syncEvery) {
		if err := l.Engine.Sync(l.ctx); err != nil && l.ctx.Err() == nil {
			l.Log.Error("filled bytes could not be made durable; after a loss of power they are fetched again", "error", err)
		}
	}
}

// syncRetry is the pause after a sync or a release that failed.
const syncRetry = 5 * time.Second

// watch waits until a layer is complete and durable, and has the transport release it
// then. A sync that fails makes spans holes again, which are then filled once more.
func (l *Set) watch(layer *Layer, on *serving) {
	level := slog.LevelInfo
	if on.blob.Complete() {
		level = slog.LevelDebug // an earlier daemon has logged it
	}
	for {
		select {
		case <-on.blob.Completed():
		case <-on.gone:
			return
		case <-l.ctx.Done():
			return
		}
		// Without the lifecycle lock: it may take long.
		if err := on.blob.Sync(); err != nil && !errors.Is(err, ondemand.ErrClosed) {
			l.Log.Error("a complete layer could not be made durable; lost bytes are fetched again", "layer", layer.digest, "error", err)
			if !sleep(l.ctx, syncRetry) {
				return
			}
			continue
		}
		released, err := l.release(layer, on)
		if released {
			l.Log.Log(context.Background(), level, "layer is complete", "layer", layer.digest)
			return
		}
		if err != nil && !sleep(l.ctx, syncRetry) {
			return
		}
	}
}

// release has the transport release a layer that is complete and durable.
func (l *Set) release(layer *Layer, on *serving) (released bool, err error) {
	err = l.with(l.ctx, layer.digest, func(now *Layer) error {
		if now.serving != on || !on.blob.Durable() {
			return nil
		}
		if err := ondemand.Release(l.Transport, on.blob); err != nil {
			return err
		}
		on.source.drop()
		released = true
		return nil
	})
	if err != nil && l.ctx.Err() == nil {
		l.Log.Error("the transport could not release a complete layer; this is tried again", "layer", layer.digest, "error", err)
	}
	return released, err
}
