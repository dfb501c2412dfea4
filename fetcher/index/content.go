package index

import (
	"context"
	"fmt"
	"io"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/lacuna-snapshotter/lacuna/fetcher/registry"
	"github.com/lacuna-snapshotter/lacuna/fetcher/spans"
)

// Content is where an image's manifests and blobs are read from.
type Content interface {
	// Manifest returns a manifest or image index by tag or digest, of at most
	// 4 MiB.
	Manifest(ctx context.Context, object string) (v1.Descriptor, []byte, error)
	// Blob returns access to a blob, of which Open tells whether it is there.
	Blob(desc v1.Descriptor) spans.Remote
}

// inRegistry is the content of a repository.
type inRegistry struct{ repo *registry.Repository }

func (r inRegistry) Manifest(ctx context.Context, object string) (v1.Descriptor, []byte, error) {
	return r.repo.Manifest(ctx, object)
}

func (r inRegistry) Blob(desc v1.Descriptor) spans.Remote { return r.repo.Blob(desc) }

// readBlob reads a small blob, verified; the caller has bounded its size.
func readBlob(ctx context.Context, from Content, desc v1.Descriptor) ([]byte, error) {
	b := make([]byte, desc.Size)
	r := from.Blob(desc).Open(ctx, 0, desc.Size)
	defer r.Close()
	if _, err := io.ReadFull(r, b); err != nil {
		return nil, err
	}
	if got := desc.Digest.Algorithm().FromBytes(b); got != desc.Digest {
		return nil, fmt.Errorf("blob %s has digest %s", desc.Digest, got)
	}
	return b, nil
}
