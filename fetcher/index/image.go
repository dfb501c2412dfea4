package index

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/lacuna-snapshotter/lacuna/erofs"
	"github.com/lacuna-snapshotter/lacuna/fetcher"
	"github.com/lacuna-snapshotter/lacuna/fetcher/predict"
	"github.com/lacuna-snapshotter/lacuna/fetcher/registry"
)

// Image is one platform's manifest in a registry.
type Image struct {
	Repo     *registry.Repository
	Manifest v1.Descriptor
	Layers   []ImageLayer // base first
	Command  predict.Command
}

// ImageLayer is a layer with the diff ID that the configuration gives it.
type ImageLayer struct {
	v1.Descriptor
	DiffID digest.Digest
}

// Indexable reports whether the layer is gzip, which an index can be made for.
func (l ImageLayer) Indexable() bool {
	return strings.HasSuffix(l.MediaType, "tar+gzip") || strings.HasSuffix(l.MediaType, "tar.gzip")
}

// ResolveImage reads an image's manifest and configuration. Of a multi-platform
// image it takes what matches platform.
func ResolveImage(ctx context.Context, client *registry.Client, ref string, platform platforms.MatchComparer) (*Image, error) {
	repo, object, err := client.Repository(ref)
	if err != nil {
		return nil, err
	}
	if object == "" {
		return nil, fmt.Errorf("image reference %q names neither a tag nor a digest", ref)
	}
	desc, body, err := repo.Manifest(ctx, object)
	if err != nil {
		return nil, err
	}
	var list v1.Index
	if err := json.Unmarshal(body, &list); err != nil {
		return nil, fmt.Errorf("manifest of %s: %w", ref, err)
	}
	if len(list.Manifests) > 0 {
		best := -1
		for i, m := range list.Manifests {
			if m.Platform == nil || !platform.Match(*m.Platform) {
				continue
			}
			if best < 0 || platform.Less(*m.Platform, *list.Manifests[best].Platform) {
				best = i
			}
		}
		if best < 0 {
			return nil, fmt.Errorf("image %s has no manifest for this platform", ref)
		}
		if desc, body, err = repo.Manifest(ctx, list.Manifests[best].Digest.String()); err != nil {
			return nil, err
		}
	}
	return decodeImage(ctx, repo, desc, body)
}

func decodeImage(ctx context.Context, repo *registry.Repository, desc v1.Descriptor, body []byte) (*Image, error) {
	var m v1.Manifest
	if err := json.Unmarshal(body, &m); err != nil {
		return nil, fmt.Errorf("manifest %s: %w", desc.Digest, err)
	}
	const maxConfig = 8 << 20
	if m.Config.Size <= 0 || m.Config.Size > maxConfig || m.Config.Digest.Validate() != nil {
		return nil, fmt.Errorf("manifest %s: configuration of %d bytes", desc.Digest, m.Config.Size)
	}
	raw := make([]byte, m.Config.Size)
	if err := repo.Blob(m.Config).ReadAt(ctx, raw, 0); err != nil {
		return nil, err
	}
	if got := m.Config.Digest.Algorithm().FromBytes(raw); got != m.Config.Digest {
		return nil, fmt.Errorf("configuration %s has digest %s", m.Config.Digest, got)
	}
	var config v1.Image
	if err := json.Unmarshal(raw, &config); err != nil {
		return nil, fmt.Errorf("configuration %s: %w", m.Config.Digest, err)
	}
	if len(config.RootFS.DiffIDs) != len(m.Layers) {
		return nil, fmt.Errorf("manifest %s has %d layers, its configuration %d", desc.Digest, len(m.Layers), len(config.RootFS.DiffIDs))
	}
	if desc.MediaType == "" {
		desc.MediaType = m.MediaType
	}
	image := &Image{Repo: repo, Manifest: desc, Command: commandOf(config.Config)}
	for i, l := range m.Layers {
		image.Layers = append(image.Layers, ImageLayer{l, config.RootFS.DiffIDs[i]})
	}
	return image, nil
}

// CreateImage makes the indexes of an image's layers in the store, those that
// are not there yet, from the registry, and then its prediction. Wrap, if not
// nil, may watch the bytes of a layer go by.
func CreateImage(ctx context.Context, image *Image, store *Store, opts fetcher.BuildOptions, wrap func(ImageLayer, io.Reader) io.Reader) (err error) {
	below := directories{}
	var dense []digest.Digest
	defer func() {
		for _, layer := range dense {
			if err != nil { // larger than an index should be
				err = errors.Join(err, store.Remove(layer))
			}
		}
	}()
	for _, l := range image.Layers {
		if !l.Indexable() {
			continue
		}
		h, err := store.Head(l.Digest)
		if err != nil || !store.complete(h) {
			if h, err = createLayer(ctx, image.Repo, l, store, denser(opts), below, wrap); err != nil {
				return fmt.Errorf("index of layer %s: %w", l.Digest, err)
			}
			dense = append(dense, l.Digest)
		}
		if err := below.add(h.Bootstrap); err != nil {
			return fmt.Errorf("index of layer %s: %w", l.Digest, err)
		}
	}
	p, err := Predict(ctx, image, store)
	if err != nil {
		return fmt.Errorf("prediction of image %s: %w", image.Manifest.Digest, err)
	}
	spacing := opts.Spacing
	if spacing == 0 {
		spacing = fetcher.DefaultSpacing
	}
	for _, layer := range dense {
		if err := thin(store, layer, p.Of(layer), spacing); err != nil {
			return fmt.Errorf("index of layer %s: %w", layer, err)
		}
	}
	return store.PutPrediction(image.Manifest.Digest, p)
}

func createLayer(ctx context.Context, repo *registry.Repository, l ImageLayer, store *Store, opts fetcher.BuildOptions, below directories, wrap func(ImageLayer, io.Reader) io.Reader) (*Head, error) {
	body := repo.Blob(l.Descriptor).Open(ctx, 0, l.Size)
	defer body.Close()
	var r io.Reader = body
	if wrap != nil {
		r = wrap(l, r)
	}
	opts.Tar.Implied = below.apply
	h, _, err := Create(ctx, r, store.Path(l.Digest), opts, Expect{Layer: l.Digest, DiffID: l.DiffID})
	return h, err
}

// directories are the attributes of the directories in the layers below: a
// layer that only implies a directory takes them from there, as overlayfs would
// otherwise show its defaults.
type directories map[string]erofs.FileInfo

func (d directories) add(bootstrap []byte) error {
	m, err := erofs.Open(bootstrap)
	if err != nil {
		return err
	}
	return m.Walk(func(path string, info *erofs.FileInfo) error {
		if info.Mode&erofs.ModeType == erofs.ModeDir {
			d[path] = *info
		} else {
			delete(d, path) // a layer that has it as a directory again begins anew
		}
		return nil
	})
}

func (d directories) apply(path string, dir *erofs.Inode) {
	if info, ok := d[path]; ok {
		dir.Mode, dir.UID, dir.GID, dir.Mtime = info.Mode, info.UID, info.GID, info.Mtime
		dir.SetXattrs(info.Xattrs)
	}
}
