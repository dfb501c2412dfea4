package index

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/semaphore"
	"golang.org/x/sync/singleflight"

	"github.com/lacuna-snapshotter/lacuna/fetcher/registry"
)

// Want is a layer as the pull of an image names it.
type Want struct {
	Ref      string        // image reference, whose repository has the index
	Manifest digest.Digest // of the image; where it is empty only the store is searched
	Layer    digest.Digest
	Above    []digest.Digest // other layers of the image, whose indexes will be wanted too
}

// Resolver finds the indexes of images' layers and their predictions: in a store of
// this node, then in the image's repository. What it fetches it puts into the store.
// containerd asks for one layer after the other; the first one that is asked for
// brings the heads of those above it as well.
type Resolver struct {
	client *registry.Client
	store  *Store
	log    *slog.Logger

	answers     answers
	heads       singleflight.Group // by layer and content
	puts        singleflight.Group // by layer
	predictions singleflight.Group // by image

	ahead *semaphore.Weighted // bytes of heads that no call waits for yet
}

// aheadMemory bounds the heads that are on their way before their layers are asked for.
// Those of large images take some ten megabytes together.
const aheadMemory = 2 * maxHead

// NewResolver makes a resolver. The log gets what does not fail a call: a damaged
// file in the store.
func NewResolver(client *registry.Client, store *Store, log *slog.Logger) *Resolver {
	return &Resolver{client: client, store: store, log: log, ahead: semaphore.NewWeighted(aheadMemory)}
}

// Find puts a layer's index into another store, that of the layer alone, and returns
// its head. It fails with ErrNone where neither the store nor the repository has one.
func (r *Resolver) Find(ctx context.Context, w Want, into *Store) (*Head, error) {
	head, err := r.share(w.Layer, into)
	if err == nil {
		return head, nil
	}
	r.unusable(w.Layer, err)
	if err := r.fetch(ctx, w); err != nil {
		return nil, err
	}
	return r.share(w.Layer, into)
}

// Fetch brings a layer's index, where the store has none that can be used, into the
// store.
func (r *Resolver) Fetch(ctx context.Context, w Want) error {
	_, err := r.store.Head(w.Layer)
	if err == nil {
		return nil
	}
	r.unusable(w.Layer, err)
	return r.fetch(ctx, w)
}

// Published returns the head of the index that the repository has of a layer. It
// stores nothing.
func (r *Resolver) Published(ctx context.Context, w Want) (head *Head, err error) {
	err = r.published(ctx, w, func(repo *registry.Repository, e Entry) error {
		b, err := fetchHeadOf(ctx, repo, e)
		if err == nil {
			head, err = decodeFor(b, w.Layer)
		}
		return err
	})
	return head, err
}

// Prediction returns what of a layer the start of an image is expected to read: from
// the store, or from the image's repository. It is empty where nothing is predicted.
func (r *Resolver) Prediction(ctx context.Context, w Want) ([]Run, error) {
	if w.Manifest == "" {
		return nil, nil
	}
	v, err := once(ctx, &r.predictions, w.Manifest.String(), func(ctx context.Context) (p *Prediction, err error) {
		if p, err = r.store.Prediction(w.Manifest); p != nil {
			return p, nil
		}
		if err != nil {
			r.log.Warn("a stored prediction is damaged and is fetched again", "image", w.Manifest, "error", err)
		}
		err = r.ask(ctx, w, func(repo *registry.Repository, a *Artifact) error {
			p, err = a.FetchPrediction(ctx, repo)
			return err
		})
		if p == nil {
			return nil, err
		}
		return p, r.store.PutPrediction(w.Manifest, p)
	})
	if v == nil || err != nil {
		return nil, err
	}
	return v.Of(w.Layer), nil
}

// share links the store's index of a layer into another store.
func (r *Resolver) share(layer digest.Digest, into *Store) (*Head, error) {
	if err := r.store.Share(layer, into); err != nil {
		return nil, err
	}
	return into.Head(layer)
}

// unusable logs why the store's index of a layer is not used, where there is one.
func (r *Resolver) unusable(layer digest.Digest, err error) {
	if err != nil && !errors.Is(err, ErrNone) {
		r.log.Warn("a stored index is damaged and is fetched again", "layer", layer, "error", err)
	}
}

// fetch brings a layer's index into the store, and begins to bring those of the
// layers above.
func (r *Resolver) fetch(ctx context.Context, w Want) error {
	return r.published(ctx, w, func(_ *registry.Repository, e Entry) error { return r.fetchHead(ctx, w.Ref, e) })
}

// fetchHead brings one head into the store, once for all calls at the same time.
func (r *Resolver) fetchHead(ctx context.Context, ref string, e Entry) error {
	_, err := once(ctx, &r.heads, e.Layer.String()+"@"+e.Content.Digest.String(), func(ctx context.Context) (none, error) {
		if _, err := r.store.Head(e.Layer); err == nil {
			return none{}, nil // an earlier call has brought it meanwhile
		}
		repo, _, err := r.client.Repository(ref)
		if err != nil {
			return none{}, err
		}
		b, err := fetchHeadOf(ctx, repo, e)
		if err != nil {
			return none{}, err
		}
		// Two images may have different indexes of one layer.
		return once(ctx, &r.puts, e.Layer.String(), func(context.Context) (none, error) {
			if _, err := r.store.Head(e.Layer); err == nil {
				return none{}, nil
			}
			return none{}, r.store.Put(e.Layer, b, Origin{Ref: ref, Entry: e})
		})
	})
	return err
}

type none struct{}

// published calls use with the repository's index of a layer, which fails with
// ErrNone where there is none.
func (r *Resolver) published(ctx context.Context, w Want, use func(*registry.Repository, Entry) error) error {
	return r.ask(ctx, w, func(repo *registry.Repository, a *Artifact) error {
		for _, e := range a.Entries {
			if e.Layer != w.Layer && slices.Contains(w.Above, e.Layer) && r.ahead.TryAcquire(e.HeadSize) {
				go func() {
					defer r.ahead.Release(e.HeadSize)
					// The call does not wait for it, and the layer's own call asks again.
					_ = r.fetchHead(context.Background(), w.Ref, e)
				}()
			}
		}
		for _, e := range a.Entries {
			if e.Layer == w.Layer {
				return use(repo, e)
			}
		}
		return fmt.Errorf("%w for layer %s in the index of its image", ErrNone, w.Layer)
	})
}

// ask calls use with an image's index. What the repository said a moment ago may not
// hold any more, as when the index was replaced and the old one deleted: where what
// is remembered leads to nothing, the repository is asked once more.
func (r *Resolver) ask(ctx context.Context, w Want, use func(*registry.Repository, *Artifact) error) error {
	if w.Manifest == "" {
		return fmt.Errorf("%w for layer %s here, and the pull does not say which image the layer is of", ErrNone, w.Layer)
	}
	repo, _, err := r.client.Repository(w.Ref)
	if err != nil {
		return err
	}
	a := r.answers.get(ctx, repo, w.Manifest)
	for {
		err := a.err
		if err == nil {
			err = use(repo, a.artifact)
		}
		old := a
		gone := registry.NotFound(err) || errors.Is(err, ErrNone) && time.Since(old.at) >= keepNone
		if !old.remembered || !gone {
			return err
		}
		r.answers.forget(repo, w.Manifest, old)
		a = r.answers.get(ctx, repo, w.Manifest)
		a.remembered = false
	}
}
