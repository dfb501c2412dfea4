package main

import (
	"context"
	"errors"
	"fmt"
	"io"

	contentapi "github.com/containerd/containerd/api/services/content/v1"
	imagesapi "github.com/containerd/containerd/api/services/images/v1"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/lacuna-snapshotter/lacuna/fetcher/spans"
)

// maxManifest bounds the size of manifests: the distribution specification asks
// registries to accept this much.
const maxManifest = 4 << 20

// inContainerd is an image's content in containerd's content store.
type inContainerd struct {
	conn      *grpc.ClientConn
	images    imagesapi.ImagesClient
	blobs     contentapi.ContentClient
	namespace string
	ref       string
}

// dialContainerd returns at once; the first request connects.
func dialContainerd(address, namespace, ref string) (*inContainerd, error) {
	conn, err := grpc.NewClient("unix:"+address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, fmt.Errorf("containerd at %s: %w", address, err)
	}
	return &inContainerd{
		conn: conn, images: imagesapi.NewImagesClient(conn), blobs: contentapi.NewContentClient(conn),
		namespace: namespace, ref: ref,
	}, nil
}

func (c *inContainerd) Close() error { return c.conn.Close() }

// Manifest implements index.Images.
func (c *inContainerd) Manifest(ctx context.Context, object string) (v1.Descriptor, []byte, error) {
	ctx = namespaces.WithNamespace(ctx, c.namespace)
	desc := v1.Descriptor{Digest: digest.Digest(object)}
	if desc.Digest.Validate() != nil {
		r, err := c.images.Get(ctx, &imagesapi.GetImageRequest{Name: c.ref})
		if err != nil {
			return desc, nil, fmt.Errorf("image %s in namespace %s of containerd: %s (ctr images list shows those that exist)", c.ref, c.namespace, status.Convert(err).Message())
		}
		t := r.GetImage().GetTarget()
		desc = v1.Descriptor{MediaType: t.GetMediaType(), Digest: digest.Digest(t.GetDigest())}
		if err := desc.Digest.Validate(); err != nil {
			return desc, nil, fmt.Errorf("image %s: %w", c.ref, err)
		}
	}
	info, err := c.blobs.Info(ctx, &contentapi.InfoRequest{Digest: desc.Digest.String()})
	if err != nil {
		return desc, nil, c.missing(desc, err)
	}
	if desc.Size = info.GetInfo().GetSize(); desc.Size < 0 || desc.Size > maxManifest {
		return desc, nil, fmt.Errorf("manifest %s has %d bytes, more than %d", desc.Digest, desc.Size, maxManifest)
	}
	r := c.Content(desc).Open(ctx, 0, desc.Size)
	defer r.Close()
	b := make([]byte, desc.Size)
	if _, err := io.ReadFull(r, b); err != nil {
		return desc, nil, fmt.Errorf("manifest %s: %w", desc.Digest, err)
	}
	if got := desc.Digest.Algorithm().FromBytes(b); got != desc.Digest {
		return desc, nil, fmt.Errorf("manifest %s has digest %s", desc.Digest, got)
	}
	return desc, b, nil
}

// missing explains what it means that containerd does not have the content.
func (c *inContainerd) missing(desc v1.Descriptor, err error) error {
	if status.Code(err) == codes.NotFound {
		return fmt.Errorf("containerd does not have %s: an image that was pulled lazily, or whose layers were discarded, is not complete there (ctr content fetch downloads it)", desc.Digest)
	}
	return fmt.Errorf("containerd's %s: %w", desc.Digest, err)
}

// Content implements index.Images.
func (c *inContainerd) Content(desc v1.Descriptor) spans.Remote { return containerdContent{c, desc} }

type containerdContent struct {
	c    *inContainerd
	desc v1.Descriptor
}

// Open implements spans.Remote. What is asked for comes as one stream.
func (b containerdContent) Open(ctx context.Context, off, n int64) io.ReadCloser {
	ctx, cancel := context.WithCancel(namespaces.WithNamespace(ctx, b.c.namespace))
	stream, err := b.c.blobs.Read(ctx, &contentapi.ReadContentRequest{Digest: b.desc.Digest.String(), Offset: off, Size: n})
	return &containerdReader{blob: b, stream: stream, cancel: cancel, off: off, left: n, err: err}
}

type containerdReader struct {
	blob   containerdContent
	stream grpc.ServerStreamingClient[contentapi.ReadContentResponse]
	cancel context.CancelFunc
	off    int64 // of the next byte
	left   int64
	data   []byte // of the last message
	err    error
}

// Read implements io.Reader.
func (r *containerdReader) Read(p []byte) (int, error) {
	for len(r.data) == 0 {
		if r.left == 0 {
			return 0, io.EOF
		}
		var m *contentapi.ReadContentResponse
		if r.err == nil {
			m, r.err = r.stream.Recv()
		}
		switch {
		case errors.Is(r.err, io.EOF):
			return 0, io.ErrUnexpectedEOF
		case r.err != nil:
			return 0, r.blob.c.missing(r.blob.desc, r.err)
		case m.GetOffset() != r.off || int64(len(m.GetData())) > r.left:
			r.err = fmt.Errorf("%d bytes at %d instead of up to %d at %d", len(m.GetData()), m.GetOffset(), r.left, r.off)
			return 0, r.blob.c.missing(r.blob.desc, r.err)
		}
		r.data = m.GetData()
		r.off += int64(len(r.data))
		r.left -= int64(len(r.data))
	}
	n := copy(p, r.data)
	r.data = r.data[n:]
	return n, nil
}

// Close implements io.Closer.
func (r *containerdReader) Close() error {
	r.cancel()
	return nil
}
