package layer

import (
	"context"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/lacuna-snapshotter/lacuna/fetcher/registry"
)

// probes find out, before a layer is mounted lazily, whether it can be fetched: from
// the image's reference, with the credentials of the node. The first layer of an image
// sends the probes of those above it too, so that an image costs one round trip.
type probes struct {
	client *registry.Client

	mu    sync.Mutex
	known map[probeKey]*probe
}

type probeKey struct {
	ref   string
	layer digest.Digest
}

type probe struct {
	done  chan struct{}
	err   error // set before done is closed
	began time.Time
}

// failed reports whether the registry has answered, and with a refusal: the next
// Prepare probes again.
func (p *probe) failed() bool {
	select {
	case <-p.done:
		return p.err != nil
	default:
		return false
	}
}

const (
	keepProbe = 10 * time.Second // long enough for the layers of one pull
	mostKnown = 1024
)

// start probes a layer and those above it, unless a probe of them began a moment ago,
// and returns a function that waits for the layer's result.
func (p *probes) start(ctx context.Context, t Target) func(context.Context) error {
	for _, above := range t.Above {
		p.ask(ctx, probeKey{t.Ref, above})
	}
	asked := p.ask(ctx, probeKey{t.Ref, t.Layer})
	return func(ctx context.Context) error {
		select {
		case <-asked.done:
			return asked.err
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (p *probes) ask(ctx context.Context, k probeKey) *probe {
	p.mu.Lock()
	defer p.mu.Unlock()
	if known := p.known[k]; known != nil && time.Since(known.began) < keepProbe && !known.failed() {
		return known
	}
	if p.known == nil || len(p.known) >= mostKnown {
		p.known = map[probeKey]*probe{}
	}
	asked := &probe{done: make(chan struct{}), began: time.Now()}
	p.known[k] = asked
	go func() {
		defer close(asked.done)
		ctx, cancel := context.WithTimeout(ctx, makeTime)
		defer cancel()
		asked.err = p.client.Probe(ctx, k.ref, k.layer, 0)
	}()
	return asked
}
