package index

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"

	"github.com/opencontainers/go-digest"

	"github.com/lacuna-snapshotter/lacuna/fetcher/registry"
	"github.com/lacuna-snapshotter/lacuna/fetcher/spans"
)

// CreateOptions say how an image's indexes are made.
type CreateOptions struct {
	Build spans.BuildOptions
	// Force replaces indexes that are there already.
	Force bool
	// Watch, if not nil, may watch the bytes of a layer go by.
	Watch func(ImageLayer, io.Reader) io.Reader
}

// Outcome is the result for one layer: it has an index, or Err says why not.
type Outcome struct {
	Layer ImageLayer
	Err   error
}

var (
	// ErrKind says that an index cannot be made of a layer of its kind.
	ErrKind = errors.New("only gzip layers can be indexed")
	// ErrNothing says that not one layer of an image has an index.
	ErrNothing = errors.New("no layer has an index")
)

// made is an index of a layer, open.
type made struct {
	layer ImageLayer
	head  *Head
	file  *os.File
	dense bool
}

// CreateImage makes the indexes of an image's layers in the store, those that
// are not there yet, and the image's prediction. It returns the result for each
// layer, base first; a layer that cannot be indexed does not stop the others.
//
// It fails with ErrNothing where no layer has an index in the end. Where it fails
// because ctx ends or the registry does not answer, the layers that are finished are
// kept, as dense indexes, and another call goes on from there; nothing that was not
// there before is found as an index.
func CreateImage(ctx context.Context, image *Image, store *Store, o CreateOptions) ([]Outcome, error) {
	if err := clean(store.dir); err != nil {
		return nil, err
	}
	m := maker{image: image, store: store, o: o}
	defer m.close()
	if err := m.layers(ctx); err != nil {
		return m.outcomes, err
	}
	if len(m.indexes) == 0 {
		return m.outcomes, fmt.Errorf("image %s: %w", image.Manifest.Digest, nothing(m.outcomes))
	}
	p, err := predictStart(ctx, image, m.indexes)
	if err != nil {
		return m.outcomes, fmt.Errorf("prediction of image %s: %w", image.Manifest.Digest, err)
	}
	if err := store.PutPrediction(image.Manifest.Digest, p); err != nil {
		return m.outcomes, err
	}
	return m.outcomes, m.finish()
}

// nothing is ErrNothing with what is known of each layer.
func nothing(outcomes []Outcome) error {
	if len(outcomes) == 0 {
		return fmt.Errorf("%w: the image has none", ErrNothing)
	}
	errs := []error{ErrNothing}
	for _, o := range outcomes {
		errs = append(errs, fmt.Errorf("layer %s: %w", o.Layer.Digest, o.Err))
	}
	return errors.Join(errs...)
}

type maker struct {
	image    *Image
	store    *Store
	o        CreateOptions
	below    directories
	outcomes []Outcome
	indexes  []*made
}

func (m *maker) close() {
	for _, ix := range m.indexes {
		ix.file.Close()
	}
}

// layers opens or makes an index of each layer.
func (m *maker) layers(ctx context.Context) error {
	for _, l := range m.image.Layers {
		ix, err := m.layer(ctx, l)
		if err == nil {
			m.indexes = append(m.indexes, ix)
			err = m.below.add(ix.head.Bootstrap)
		}
		m.outcomes = append(m.outcomes, Outcome{l, err})
		if err == nil {
			continue
		}
		m.below.gap()
		if ctx.Err() != nil || unreachable(err) { // so would the others be
			return fmt.Errorf("index of layer %s: %w", l.Digest, err)
		}
	}
	return nil
}

// unreachable reports whether a registry does not answer, or not us.
func unreachable(err error) bool {
	var e *registry.Error
	if !errors.As(err, &e) {
		return false
	}
	return e.Status == 0 || e.Status >= http.StatusInternalServerError || e.Status == http.StatusUnauthorized ||
		e.Status == http.StatusForbidden || e.Status == http.StatusTooManyRequests
}

func (m *maker) layer(ctx context.Context, l ImageLayer) (*made, error) {
	if !l.Indexable() {
		return nil, fmt.Errorf("%w: it is %s", ErrKind, l.MediaType)
	}
	path := m.store.densePath(l.Digest, m.o.Build)
	if !m.o.Force {
		if f, h, err := m.store.openWhole(l.Digest, path); err == nil {
			return &made{l, h, f, true}, nil
		}
		if f, h, err := m.store.openWhole(l.Digest, m.store.Path(l.Digest)); err == nil {
			return &made{l, h, f, false}, nil
		}
	}
	// Dense indexes made with other options are not needed any more.
	if err := m.store.removeDense(l.Digest); err != nil {
		return nil, err
	}
	if err := m.create(ctx, l, path); err != nil {
		return nil, err
	}
	f, h, err := m.store.openWhole(l.Digest, path)
	if err != nil {
		return nil, err
	}
	return &made{l, h, f, true}, nil
}

// create makes a layer's dense index.
func (m *maker) create(ctx context.Context, l ImageLayer, path string) error {
	body := m.image.From.Content(l.Descriptor).Open(ctx, 0, l.Size)
	defer body.Close()
	var r io.Reader = body
	if m.o.Watch != nil {
		r = m.o.Watch(l, r)
	}
	opts := denser(m.o.Build)
	opts.Tar.Implied = m.below.apply
	m.below.unknown = ""
	_, _, err := create(ctx, r, path, opts, func(got *spans.Map) error {
		if d := m.below.unknown; d != "" {
			return fmt.Errorf("it implies directory %s, whose attributes are in a layer below that has no index", d)
		}
		return Expect{Layer: l.Digest, DiffID: l.DiffID}.check(got)
	})
	return err
}

// finish makes the indexes of the dense ones, which stay: another image on the same
// layers may start elsewhere in them.
func (m *maker) finish() error {
	spacing := m.o.Build.Spacing
	if spacing == 0 {
		spacing = spans.DefaultSpacing
	}
	for _, ix := range m.indexes {
		if !ix.dense {
			continue
		}
		layer := ix.layer.Digest
		runs, err := m.store.runsOf(layer)
		if err != nil {
			return err
		}
		var have *made
		if f, h, err := m.store.openWhole(layer, m.store.Path(layer)); err == nil {
			have = &made{ix.layer, h, f, false}
			f.Close()
		}
		if err := thin(ix, have, m.store.Path(layer), runs, spacing); err != nil {
			return fmt.Errorf("index of layer %s: %w", layer, err)
		}
		if err := os.Remove(m.store.originPath(layer)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return nil
}

// densePath is where a layer's dense index is kept, which was made with options.
func (s *Store) densePath(layer digest.Digest, o spans.BuildOptions) string {
	return fmt.Sprintf("%s%d-%d-%d", s.densePrefix(layer), o.SpanSize, o.Spacing, o.Grain)
}

func (s *Store) densePrefix(layer digest.Digest) string {
	return strings.TrimSuffix(s.Path(layer), suffix) + ".dense-"
}

// removeDense drops a layer's dense indexes.
func (s *Store) removeDense(layer digest.Digest) error {
	entries, err := os.ReadDir(s.dir)
	for _, e := range entries {
		path := filepath.Join(s.dir, e.Name())
		if strings.HasPrefix(path, s.densePrefix(layer)) {
			err = errors.Join(err, os.Remove(path))
		}
	}
	return err
}
