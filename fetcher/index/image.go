package index

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/lacuna-snapshotter/lacuna/fetcher/predict"
	"github.com/lacuna-snapshotter/lacuna/fetcher/registry"
)

// Image is one platform's manifest.
type Image struct {
	From     Images               // where it is read from
	Repo     *registry.Repository // where its indexes belong
	Platform v1.Platform
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

// ResolveImages reads the manifests and configurations of an image for the wanted
// platforms. Repo, which ref names, is where its indexes are to be found.
func ResolveImages(ctx context.Context, client *registry.Client, from Images, ref string, want Platforms) ([]*Image, error) {
	repo, object, err := parseRef(client, ref)
	if err != nil {
		return nil, err
	}
	if from == nil {
		from = inRegistry{repo}
	}
	desc, body, err := from.Manifest(ctx, object)
	if err != nil {
		return nil, err
	}
	var list v1.Index
	if err := json.Unmarshal(body, &list); err != nil {
		return nil, fmt.Errorf("manifest of %s: %w", ref, err)
	}
	if len(list.Manifests) == 0 {
		image, err := decodeImage(ctx, from, desc, body)
		if err != nil {
			return nil, fmt.Errorf("image %s: %w", ref, err)
		}
		image.Repo = repo
		return []*Image{image}, want.allow(ref, image.Platform)
	}
	chosen, err := want.choose(ref, list.Manifests)
	if err != nil {
		return nil, err
	}
	var images []*Image
	for _, d := range chosen {
		if err := d.Digest.Validate(); err != nil {
			return nil, fmt.Errorf("image %s: manifest %q: %w", ref, d.Digest, err)
		}
		desc, body, err := from.Manifest(ctx, d.Digest.String())
		if err != nil {
			return nil, err
		}
		image, err := decodeImage(ctx, from, desc, body)
		if err != nil {
			return nil, fmt.Errorf("image %s: %w", ref, err)
		}
		image.Repo, image.Platform = repo, *d.Platform
		images = append(images, image)
	}
	return images, nil
}

// parseRef splits an image reference, which must be whole.
func parseRef(client *registry.Client, ref string) (repo *registry.Repository, object string, err error) {
	name, tag, _ := strings.Cut(ref, "@")
	if first, _, path := strings.Cut(name, "/"); !path || !strings.ContainsAny(first, ".:") && first != "localhost" {
		short := name
		if !path {
			short = "library/" + name
		}
		return nil, "", fmt.Errorf("image reference %q names no registry: write docker.io/%s, or the registry that it is in", ref, short)
	}
	if d := digest.Digest(tag); tag != "" && d.Validate() != nil {
		return nil, "", fmt.Errorf("image reference %q: %q is no digest, which is sha256: and 64 hexadecimal digits", ref, tag)
	}
	if repo, object, err = client.Repository(ref); err != nil {
		return nil, "", err
	}
	if object == "" {
		return nil, "", fmt.Errorf("image reference %q names neither a tag nor a digest: write %s:latest", ref, ref)
	}
	return repo, object, nil
}

func decodeImage(ctx context.Context, from Images, desc v1.Descriptor, body []byte) (*Image, error) {
	var m v1.Manifest
	if err := json.Unmarshal(body, &m); err != nil {
		return nil, fmt.Errorf("manifest %s: %w", desc.Digest, err)
	}
	if m.ArtifactType != "" || !strings.Contains(m.Config.MediaType, "image") {
		return nil, fmt.Errorf("manifest %s is of %s, which is no container image", desc.Digest, cmp.Or(m.ArtifactType, m.Config.MediaType, "an unknown type"))
	}
	const maxConfig = 8 << 20
	if m.Config.Size <= 0 || m.Config.Size > maxConfig || m.Config.Digest.Validate() != nil {
		return nil, fmt.Errorf("manifest %s: configuration of %d bytes", desc.Digest, m.Config.Size)
	}
	raw, err := readContent(ctx, from, m.Config)
	if err != nil {
		return nil, err
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
	image := &Image{From: from, Manifest: desc, Platform: config.Platform, Command: commandOf(config.Config)}
	for i, l := range m.Layers {
		if err := l.Digest.Validate(); err != nil {
			return nil, fmt.Errorf("manifest %s: layer %q: %w", desc.Digest, l.Digest, err)
		}
		image.Layers = append(image.Layers, ImageLayer{l, config.RootFS.DiffIDs[i]})
	}
	return image, nil
}
