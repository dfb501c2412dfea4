package layer

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/singleflight"

	"github.com/lacuna-snapshotter/lacuna/fetcher/index"
	"github.com/lacuna-snapshotter/lacuna/fetcher/registry"
)

// indexes finds layer indexes: in the local store, then in the image's
// repository. containerd asks layer by layer; the first layer of an image
// brings the heads of all, so that the others find theirs.
type indexes struct {
	client *registry.Client
	store  *index.Store
	log    *slog.Logger

	artifacts   singleflight.Group
	heads       singleflight.Group
	predictions singleflight.Group

	mu    sync.Mutex
	known map[string]answer // by repository and manifest; a few, of pulls under way
}

// answer is what a repository said of an image's index.
type answer struct {
	artifact *index.Artifact
	err      error // index.ErrNone, or nil
	at       time.Time
}

// keepNone is how long a missing index is not asked for again: long enough for
// the other layers of the same pull.
const keepNone = 10 * time.Second

// find puts a layer's index into a layer's own store and returns the head of what it
// has put there.
func (x *indexes) find(ctx context.Context, t Target, own *index.Store) (*index.Head, error) {
	head, err := x.take(t.Layer, own)
	if err == nil {
		return head, nil
	}
	if !errors.Is(err, index.ErrNone) {
		x.log.Warn("a stored index cannot be used and is fetched again", "layer", t.Layer, "error", err)
	}
	if t.Manifest == "" {
		return nil, fmt.Errorf("%w (and the pull does not say which image the layer is of)", err)
	}
	artifact, err := x.artifact(ctx, t)
	if err != nil {
		return nil, err
	}
	for _, e := range artifact.Entries {
		if e.Layer != t.Layer && slices.Contains(t.Above, e.Layer) {
			// Not for this layer: nobody waits for it yet.
			go x.fetch(context.WithoutCancel(ctx), t.Ref, e) //nolint:errcheck // whoever needs it asks again
		}
	}
	for _, e := range artifact.Entries {
		if e.Layer == t.Layer {
			if err := x.fetch(ctx, t.Ref, e); err != nil {
				return nil, err
			}
			return x.take(t.Layer, own)
		}
	}
	return nil, fmt.Errorf("%w for layer %s in the index of its image", index.ErrNone, t.Layer)
}

// take puts the store's index of a layer into another store.
func (x *indexes) take(layer digest.Digest, own *index.Store) (*index.Head, error) {
	if err := x.store.Share(layer, own); err != nil {
		return nil, err
	}
	return own.Head(layer)
}

// artifact finds an image's index once for all its layers.
func (x *indexes) artifact(ctx context.Context, t Target) (*index.Artifact, error) {
	repo, _, err := x.client.Repository(t.Ref)
	if err != nil {
		return nil, err
	}
	key := repo.Name() + "@" + t.Manifest.String()
	x.mu.Lock()
	known, ok := x.known[key]
	x.mu.Unlock()
	if ok && (known.err == nil || time.Since(known.at) < keepNone) {
		return known.artifact, known.err
	}
	v, err := share(ctx, &x.artifacts, key, func(ctx context.Context) (any, error) { return index.Find(ctx, repo, t.Manifest) })
	if err != nil && !errors.Is(err, index.ErrNone) {
		return nil, err
	}
	artifact, _ := v.(*index.Artifact)
	x.mu.Lock()
	defer x.mu.Unlock()
	const keep = 32
	if x.known == nil || len(x.known) >= keep {
		x.known = map[string]answer{}
	}
	x.known[key] = answer{artifact, err, time.Now()}
	return artifact, err
}

// prediction returns what of a layer the start of an image is expected to read:
// from the store, or from the image's index.
func (x *indexes) prediction(ctx context.Context, t Target) ([]index.Run, error) {
	if t.Manifest == "" {
		return nil, nil
	}
	v, err := share(ctx, &x.predictions, t.Manifest.String(), func(ctx context.Context) (any, error) {
		p, err := x.store.Prediction(t.Manifest)
		if p != nil {
			return p, nil
		}
		if err != nil {
			x.log.Warn("a stored prediction cannot be used and is fetched again", "image", t.Manifest, "error", err)
		}
		artifact, err := x.artifact(ctx, t)
		if err != nil {
			return nil, err
		}
		repo, _, err := x.client.Repository(t.Ref)
		if err != nil {
			return nil, err
		}
		if p, err = artifact.FetchPrediction(ctx, repo); p == nil {
			return nil, err
		}
		return p, x.store.PutPrediction(t.Manifest, p)
	})
	if p, ok := v.(*index.Prediction); ok && err == nil {
		return p.Of(t.Layer), nil
	}
	return nil, err
}

// share has one call of f serve all who ask for the same at once. It does not end
// with the one who asked first.
func share(ctx context.Context, g *singleflight.Group, key string, f func(context.Context) (any, error)) (any, error) {
	done := g.DoChan(key, func() (any, error) {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), makeTime)
		defer cancel()
		return f(ctx)
	})
	select {
	case r := <-done:
		return r.Val, r.Err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// fetch brings a head that can be used into the store.
func (x *indexes) fetch(ctx context.Context, ref string, e index.Entry) error {
	_, err := share(ctx, &x.heads, e.Layer.String(), func(ctx context.Context) (any, error) {
		if _, err := x.store.Head(e.Layer); err == nil {
			return nil, nil // another was faster
		}
		repo, _, err := x.client.Repository(ref)
		if err != nil {
			return nil, err
		}
		head, err := index.FetchHead(ctx, repo, e)
		if err != nil {
			return nil, err
		}
		return nil, x.store.Put(e.Layer, head, index.Source{Ref: ref, Entry: e})
	})
	return err
}
