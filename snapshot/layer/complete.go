package layer

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/lacuna-snapshotter/lacuna/ondemand"
)

// watch lets a layer's transport go once the layer is complete and durable. A sync
// that fails makes spans holes again, which are then filled once more.
func (l *Set) watch(layer *Layer, on *serving) {
	level := slog.LevelInfo
	if on.blob.Complete() {
		level = slog.LevelDebug // an earlier daemon has said so
	}
	for {
		select {
		case <-on.blob.Completed():
		case <-on.gone:
			return
		case <-l.ctx.Done():
			return
		}
		// Not under the lifecycle lock: it may take long.
		if err := on.blob.Sync(); err != nil && !errors.Is(err, ondemand.ErrClosed) {
			l.Log.Error("a complete layer cannot be made durable; what is not is fetched again", "layer", layer.digest, "error", err)
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

const syncRetry = 5 * time.Second

// release has the transport let go of a layer that is complete for good.
func (l *Set) release(layer *Layer, on *serving) (released bool, err error) {
	err = l.with(l.ctx, layer.digest, func(now *Layer) error {
		if now.serving != on || !on.blob.Durable() {
			return nil
		}
		if err := l.Transport.Release(on.blob); err != nil {
			return err
		}
		on.source.drop()
		released = true
		return nil
	})
	if err != nil && l.ctx.Err() == nil {
		l.Log.Error("releasing a complete layer", "layer", layer.digest, "error", err)
	}
	return released, err
}
