package index

import (
	"context"
	"fmt"
	"io"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/lacuna-snapshotter/lacuna/fetcher/registry"
	"github.com/lacuna-snapshotter/lacuna/fetcher/spans"
)

// Images is where an image's manifests and layers are read from: a repository, an OCI
// layout, the content store of containerd.
type Images interface {
	// Manifest returns a manifest or image index by tag or digest, of at most
	// 4 MiB.
	Manifest(ctx context.Context, object string) (v1.Descriptor, []byte, error)
	// Content returns access to what a descriptor names, of which Open tells whether
	// it is there.
	Content(desc v1.Descriptor) spans.Remote
}

// inRegistry is Images of a repository.
type inRegistry struct{ repo *registry.Repository }

func (r inRegistry) Manifest(ctx context.Context, object string) (v1.Descriptor, []byte, error) {
	return r.repo.Manifest(ctx, object)
}

func (r inRegistry) Content(desc v1.Descriptor) spans.Remote { return r.repo.Content(desc) }

// readContent reads small content, verified; the caller has bounded its size.
func readContent(ctx context.Context, from Images, desc v1.Descriptor) ([]byte, error) {
	b := make([]byte, desc.Size)
	r := from.Content(desc).Open(ctx, 0, desc.Size)
	defer r.Close()
	if _, err := io.ReadFull(r, b); err != nil {
		return nil, err
	}
	if got := desc.Digest.Algorithm().FromBytes(b); got != desc.Digest {
		return nil, fmt.Errorf("content %s has digest %s", desc.Digest, got)
	}
	return b, nil
}
