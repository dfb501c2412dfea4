package layer

import (
	"errors"
	"strings"
	"time"

	"golang.org/x/time/rate"

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

// settle fills layers ahead as long as no reader waits: one layer after the other
// of each registry, and the registries side by side, so that one that does not
// answer holds up its own layers only.
func (l *Set) settle() {
	if !l.Settle.Enabled {
		return
	}
	limit := rate.NewLimiter(rate.Inf, piece)
	if l.Settle.Rate > 0 {
		limit.SetLimit(rate.Limit(l.Settle.Rate))
	}
	var busy busy
	const look = 500 * time.Millisecond
	paused := ""
	for sleep(l.ctx, look) {
		if why := l.pausedBy(); why != paused {
			l.Log.Info("filling ahead", "paused", why != "", "why", why)
			paused = why
		}
		if paused != "" || l.Engine.Quiet() < l.Settle.Quiet {
			continue
		}
		for registry, layer := range l.unfilled() {
			if !busy.take(registry) {
				continue
			}
			l.start(func() {
				defer busy.free(registry)
				l.fillLayer(layer, limit)
			})
		}
	}
}

// pausedBy says why nothing should be filled ahead just now, or nothing.
func (l *Set) pausedBy() string {
	if l.over.Load() {
		return "the cache is over its limit"
	}
	return pressed(l.Root)
}

// unfilled picks the layer to fill next of each registry: the last used of those
// with holes for which it is time.
func (l *Set) unfilled() map[string]*Layer {
	l.mu.Lock()
	defer l.mu.Unlock()
	next := map[string]*Layer{}
	for _, layer := range l.layers {
		if layer.state != Ready || layer.serving.blob.Complete() || !layer.fill.due() {
			continue
		}
		registry := registryOf(layer.files.Ref)
		if other := next[registry]; other == nil || layer.used.After(other.used) {
			next[registry] = layer
		}
	}
	return next
}

// registryOf is the host of an image reference.
func registryOf(ref string) string {
	host, _, _ := strings.Cut(ref, "/")
	return host
}

// fillLayer fills a layer's holes, until something is more important.
func (l *Set) fillLayer(layer *Layer, limit *rate.Limiter) {
	l.mu.Lock()
	on := layer.serving
	l.mu.Unlock()
	if on == nil {
		return
	}
	for l.ctx.Err() == nil && !on.blob.Complete() && l.pausedBy() == "" && l.Engine.Quiet() >= l.Settle.Quiet {
		if err := limit.WaitN(l.ctx, piece); err != nil {
			return
		}
		err := on.blob.FillAhead(l.ctx, on.blob.FirstHole(), piece)
		l.mu.Lock()
		if err != nil {
			layer.fill.failed()
		} else {
			layer.fill = backoff{}
		}
		l.mu.Unlock()
		if err != nil {
			if l.ctx.Err() == nil && !errors.Is(err, ondemand.ErrClosed) {
				l.Log.Warn("filling ahead", "layer", layer.digest, "error", err)
			}
			return
		}
	}
}
