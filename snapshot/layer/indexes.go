package layer

import (
	"context"
	"fmt"
	"log/slog"

	"github.com/opencontainers/go-digest"

	"github.com/lacuna-snapshotter/lacuna/fetcher/index"
	"github.com/lacuna-snapshotter/lacuna/fetcher/registry"
)

// ownIndex is a layer's own index, in its directory. One that a disk has damaged is
// replaced, while the layer is mounted, by one of the same layout: from the node's
// store, or from the repository of the image. Where there is none, or the registry
// does not answer, the reader gets the error, and the next one tries again.
type ownIndex struct {
	state    layerState
	fit      *index.Fit
	store    *index.Store // of the layer alone
	client   *registry.Client
	resolver *index.Resolver
	temp     func() (dir string, done func(), err error)
	log      *slog.Logger
}

// fits reports what makes an index unfit for the layer's mounted bootstrap, and for the
// bytes that are filled already.
func (s layerState) fits(h *index.Head) error {
	if got := digest.FromBytes(h.Bootstrap); got != s.Bootstrap || h.Map.SpanSize != s.SpanSize || h.Map.BlobSize != s.BlobSize {
		return fmt.Errorf("the index is of another layout of layer %s: bootstrap %s, %d bytes in spans of %d; mounted is bootstrap %s, %d bytes in spans of %d",
			s.Layer, got, h.Map.BlobSize, h.Map.SpanSize, s.Bootstrap, s.BlobSize, s.SpanSize)
	}
	if s.Spans != "" && (h.Spans() != s.Spans || h.Map.PackedSize != s.Packed) {
		return fmt.Errorf("the index promises other bytes of layer %s than the one that it was mounted with", s.Layer)
	}
	return nil
}

// open opens the index, and replaces it where it is damaged.
func (x *ownIndex) open(ctx context.Context) (*index.Layer, error) {
	l, err := x.opened()
	if err == nil {
		return l, nil
	}
	l, rerr := x.replace(ctx)
	if rerr != nil {
		return nil, fmt.Errorf("the layer's own index: %w (%w)", err, rerr)
	}
	return l, nil
}

func (x *ownIndex) opened() (*index.Layer, error) {
	head, err := x.store.Head(x.state.Layer)
	if err == nil {
		err = x.state.fits(head)
	}
	if err != nil {
		return nil, err
	}
	return x.store.Open(x.client, x.state.Ref, head)
}

// replace finds another index of the layer's layout, puts it in the place of the own
// one and opens it.
func (x *ownIndex) replace(ctx context.Context) (*index.Layer, error) {
	dir, done, err := x.temp()
	if err != nil {
		return nil, err
	}
	defer done()
	into, err := index.OpenStore(dir)
	if err != nil {
		return nil, err
	}
	if _, err := x.resolver.FindFitting(ctx, index.Want(x.state.image()), x.fit, x.store, into); err != nil {
		return nil, fmt.Errorf("no other index to replace it: %w", err)
	}
	if err := x.store.Take(x.state.Layer, into); err != nil {
		return nil, err
	}
	x.log.Warn("the damaged index of a layer was replaced", "layer", x.state.Layer, "image", x.state.Ref)
	return x.opened()
}
