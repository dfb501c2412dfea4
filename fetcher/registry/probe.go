package registry

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// probeAttempts is how often a probe is sent where the registry is in trouble: a
// pull waits for it, and has another way when it fails.
const probeAttempts = 3

// keepProbe is how long a registry's refusal stands for the other layers of the
// same image. It is about the repository and not about one layer: no credentials, no
// connection. A success or a missing layer says nothing of others.
const keepProbe = 3 * time.Second

// probes are the refusals of the last moments, by repository.
type probes struct {
	mu   sync.Mutex
	last map[string]refusal
}

type refusal struct {
	err error
	at  time.Time
}

// Probe checks that the bytes of a layer can be read from the repository of an
// image reference: it reads one, as a real read would, with the same mirrors,
// credentials and redirects. size is the layer's, or zero where it is not known.
//
// The error is an [*Error]; it matches [ErrUnauthorized], [ErrNotFound],
// [ErrMisconfigured] or [ErrRange], or is that of an outage.
func (c *Client) Probe(ctx context.Context, ref string, layer digest.Digest, size int64) error {
	if err := layer.Validate(); err != nil {
		return err
	}
	repo, _, err := c.Repository(ref)
	if err != nil {
		return err
	}
	if err := c.probes.known(repo.Name()); err != nil {
		return err
	}
	b := repo.Content(v1.Descriptor{Digest: layer, Size: size})
	r := b.open(ctx, 0, 1)
	defer r.Close()
	policy := c.opts.Retry
	policy.Attempts = min(policy.Attempts, probeAttempts)
	err = repo.doPolicy(ctx, policy, false, r.fetch(make([]byte, 1)))
	if ctx.Err() == nil {
		c.probes.keep(repo.Name(), err)
	}
	return err
}

func (p *probes) known(repo string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if k, ok := p.last[repo]; ok && time.Since(k.at) < keepProbe {
		return k.err
	}
	return nil
}

func (p *probes) keep(repo string, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for name, k := range p.last {
		if time.Since(k.at) >= keepProbe {
			delete(p.last, name)
		}
	}
	if err == nil || NotFound(err) || errors.Is(err, ErrRange) {
		delete(p.last, repo)
		return
	}
	if p.last == nil {
		p.last = map[string]refusal{}
	}
	p.last[repo] = refusal{err, time.Now()}
}
