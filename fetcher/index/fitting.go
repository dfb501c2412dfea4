package index

import (
	"context"
	"sync"

	"github.com/opencontainers/go-digest"

	"github.com/lacuna-snapshotter/lacuna/fetcher/registry"
)

// Fit tells which indexes may take the place of a layer's damaged one. It remembers the
// last head from a repository that may not, which is large, and stays what it is.
type Fit struct {
	check func(*Head) error

	mu    sync.Mutex
	unfit digest.Digest // of that head
	err   error         // why
}

// NewFit makes a Fit of a check of heads.
func NewFit(check func(*Head) error) *Fit { return &Fit{check: check} }

// refused is why a head is known to be unfit, or nil.
func (f *Fit) refused(head digest.Digest) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if head != f.unfit {
		return nil
	}
	return f.err
}

// decode decodes a head with a digest and checks it.
func (f *Fit) decode(b []byte, e Entry) (*Head, error) {
	head, err := decodeFor(b, e.Layer)
	if err == nil {
		err = f.check(head)
	}
	if err != nil {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.unfit, f.err = e.HeadDigest, err
		return nil, err
	}
	return head, nil
}

// FindFitting is Find for a layer that is laid out already, and whose index, in a store
// of its own, is damaged: only another index that fits will do. It changes nothing in
// the resolver's store, whose index may be of another layout, or be the damaged one
// itself, which Find has shared.
func (r *Resolver) FindFitting(ctx context.Context, w Want, fit *Fit, damaged, into *Store) (*Head, error) {
	if !r.store.shares(w.Layer, damaged) {
		head, err := r.share(w.Layer, into)
		if err == nil && fit.check(head) == nil {
			return head, nil
		}
		r.unusable(w.Layer, err)
	}
	var found *Head
	err := r.published(ctx, w, func(repo *registry.Repository, e Entry) error {
		if err := fit.refused(e.HeadDigest); err != nil {
			return err
		}
		b, err := fetchHeadOf(ctx, repo, e)
		if err != nil {
			return err
		}
		if found, err = fit.decode(b, e); err != nil {
			return err
		}
		return into.Put(w.Layer, b, Origin{Ref: w.Ref, Entry: e})
	})
	return found, err
}
