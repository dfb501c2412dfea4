package layer

import (
	"context"
	"time"

	"github.com/opencontainers/go-digest"
)

// quarantine makes a layer whose files cannot be used Quarantined. The caller holds
// the lifecycle lock.
func (l *Set) quarantine(layer *Layer, f *files, err error) {
	l.Log.Error("layer quarantined: containers on it cannot start until it is rebuilt, which is tried in the background",
		"layer", layer.digest, "error", err)
	l.become(layer, Quarantined, f, nil, err)
}

// backoff grows the pauses between tries that fail.
type backoff struct {
	next time.Time
	wait time.Duration
}

const (
	firstRetry = 2 * time.Second
	lastRetry  = 5 * time.Minute
)

func (b *backoff) failed() {
	b.wait = min(max(2*b.wait, firstRetry), lastRetry)
	b.next = time.Now().Add(b.wait)
}

func (b *backoff) due() bool { return !time.Now().Before(b.next) }

// untilRebuild is how long the pause after a layer's last rebuild still is.
func (l *Set) untilRebuild(layer *Layer) time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	return max(0, time.Until(layer.retry.next))
}

// rebuildFailed begins the next pause.
func (l *Set) rebuildFailed(layer *Layer) {
	l.mu.Lock()
	defer l.mu.Unlock()
	layer.retry.failed()
}

// rebuildQuarantined rebuilds quarantined layers: those of one registry one after the
// other, and the registries in parallel, since a layer of a registry that does not
// answer takes makeTime.
func (l *Set) rebuildQuarantined() {
	var busy busy
	for sleep(l.ctx, lookEvery) {
		for registry, due := range l.due() {
			if !busy.take(registry) {
				continue
			}
			l.start(func() {
				defer busy.free(registry)
				for _, d := range due {
					err := l.with(l.ctx, d, func(layer *Layer) error { return l.rebuild(l.ctx, layer) })
					if err != nil && l.ctx.Err() == nil {
						l.Log.Warn("a quarantined layer could not be rebuilt; this is tried again", "layer", d, "error", err)
					}
				}
			})
		}
	}
}

// due lists the quarantined layers whose pause is over, by their registries.
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

// rebuild makes a Quarantined layer that snapshots stand for Ready. The caller holds
// the lifecycle lock.
func (l *Set) rebuild(ctx context.Context, layer *Layer) error {
	uses, err := l.uses(ctx)
	if err != nil || layer.state != Quarantined || !uses[layer.digest].Needed {
		return err
	}
	if err := l.ready(ctx, layer, uses[layer.digest].From, anyway); err != nil {
		return err
	}
	l.Log.Info("quarantined layer rebuilt", "layer", layer.digest)
	return nil
}
