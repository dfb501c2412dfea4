package layer

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/lacuna-snapshotter/lacuna/ondemand"
)

// Backfill is the policy of filling layers to their end in the background.
type Backfill struct {
	Enabled bool
	// Quiet is how long no reader must have waited before a piece is filled.
	Quiet time.Duration
	// Rate is bytes of blob a second for the node; zero is no limit.
	Rate int64
}

const (
	// piece is how much is filled between two looks at the readers.
	piece = 4 << 20
	// backfillLook is how often the layers are looked at.
	backfillLook = 500 * time.Millisecond
)

// backfill fills layers while readers are quiet: the layers of one registry one after
// the other, and the registries in parallel, so that a registry which does not answer
// delays its own layers only.
func (l *Set) backfill() {
	if !l.Backfill.Enabled {
		return
	}
	limit := rate.NewLimiter(rate.Inf, piece)
	if l.Backfill.Rate > 0 {
		limit.SetLimit(rate.Limit(l.Backfill.Rate))
	}
	var busy busy
	paused := ""
	for sleep(l.ctx, backfillLook) {
		if why := l.pausedBy(); why != paused {
			if why != "" {
				l.Log.Info("backfill paused", "reason", why)
			} else {
				l.Log.Info("backfill resumed")
			}
			paused = why
		}
		if paused != "" || l.Engine.Quiet() < l.Backfill.Quiet {
			continue
		}
		for registry, layer := range l.unfilled() {
			if !busy.take(registry) {
				continue
			}
			l.start(func() {
				defer busy.free(registry)
				l.backfillLayer(layer, limit)
			})
		}
	}
}

// pausedBy says why backfill must pause now. It is empty where it need not.
func (l *Set) pausedBy() string {
	if l.over.Load() {
		return "the cache is over its limit"
	}
	return pressed(l.Root)
}

// unfilled picks the layer of each registry to fill next: of those with holes whose
// last failure is long enough ago, the last used.
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

// backfillLayer fills a layer's holes until it is complete, a reader waits, backfill
// must pause, or a fetch fails.
func (l *Set) backfillLayer(layer *Layer, limit *rate.Limiter) {
	l.mu.Lock()
	on := layer.serving
	l.mu.Unlock()
	if on == nil {
		return
	}
	for l.ctx.Err() == nil && !on.blob.Complete() && l.pausedBy() == "" && l.Engine.Quiet() >= l.Backfill.Quiet {
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
				l.Log.Warn("backfill of a layer failed and is tried again later", "layer", layer.digest, "error", err)
			}
			return
		}
	}
}

// Fill fills all ready layers to their end, whether backfill is enabled and readers are
// quiet or not, and returns when they are filled. A layer that is evicted or removed
// meanwhile is left out.
func (l *Set) Fill(ctx context.Context) error {
	var errs []error
	for _, d := range l.all() {
		view, ok := l.view(d)
		if !ok || view.state != Ready {
			continue
		}
		on := view.serving
		err := on.blob.FillAhead(ctx, 0, on.blob.Size())
		select {
		case <-on.gone: // the cause of any error
		default:
			if err != nil {
				errs = append(errs, fmt.Errorf("fill layer %s: %w", d, err))
			}
		}
	}
	return errors.Join(errs...)
}

// busy is the set of registries that a goroutine works on.
type busy struct {
	mu    sync.Mutex
	names map[string]bool
}

// take reports whether the name was free; then it is the caller's until free.
func (b *busy) take(name string) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.names[name] {
		return false
	}
	if b.names == nil {
		b.names = map[string]bool{}
	}
	b.names[name] = true
	return true
}

func (b *busy) free(name string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.names, name)
}
