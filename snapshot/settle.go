package snapshot

import (
	"context"
	"errors"
	"time"

	"github.com/lacuna-snapshotter/lacuna/ondemand"
)

// Settle is the policy of filling layers ahead until they are complete.
type Settle struct {
	Enabled bool
	// Quiet is how long no reader must have waited before a piece is filled.
	Quiet time.Duration
	// Rate is bytes of blob a second for the node; zero is no limit.
	Rate int64
}

// piece is how much is filled between two looks at the readers.
const piece = 4 << 20

// settle fills the layers one after the other, as long as nobody waits.
func (l *Layers) settle() {
	defer l.work.Done()
	if !l.Settle.Enabled {
		return
	}
	const look = 500 * time.Millisecond
	paused := ""
	for {
		if why := pressed(l.Root); why != paused {
			l.Log.Info("filling ahead", "paused", why != "", "why", why)
			paused = why
		}
		layer, off := l.nextHole()
		wait := look
		switch {
		case layer == nil, l.over.Load(), paused != "":
		case l.Engine.Quiet() < l.Settle.Quiet:
			wait = min(look, l.Settle.Quiet)
		default:
			began := time.Now()
			if err := layer.blob.FillAhead(l.ctx, off, piece); err != nil && l.ctx.Err() == nil && !errors.Is(err, ondemand.ErrClosed) {
				l.Log.Warn("filling ahead", "layer", layer.state.Layer, "error", err)
				wait = 10 * time.Second
				break
			}
			wait = 0
			if l.Settle.Rate > 0 {
				wait = time.Duration(float64(piece)/float64(l.Settle.Rate)*float64(time.Second)) - time.Since(began)
			}
		}
		if !sleep(l.ctx, wait) {
			return
		}
	}
}

// nextHole picks a layer and where its first hole is.
func (l *Layers) nextHole() (*Layer, int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, layer := range l.layers {
		if layer.blob != nil && layer.err == nil && !layer.blob.Complete() {
			return layer, layer.blob.FirstHole()
		}
	}
	return nil, 0
}

func sleep(ctx context.Context, d time.Duration) bool {
	if d <= 0 {
		return ctx.Err() == nil
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
