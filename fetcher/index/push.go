package index

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/lacuna-snapshotter/lacuna/fetcher/registry"
)

// Pushed tells what Push sent.
type Pushed struct {
	Manifest v1.Descriptor `json:"manifest"`
	Entries  []Entry       `json:"-"`
	Missing  []Outcome     `json:"-"`      // layers that it has no index of
	Tagged   bool          `json:"tagged"` // listed by tag, for a registry without the referrers API
}

// Push sends the stored indexes of an image's layers to its repository, as one
// artifact that refers to the image. Of those that are missing or damaged it tells;
// where none is good it pushes nothing and fails with ErrNothing. Progress, if not
// nil, is told of bytes.
func Push(ctx context.Context, client *registry.Client, image *Image, store *Store, progress func(n int64)) (*Pushed, error) {
	resolver := docker.NewResolver(docker.ResolverOptions{Hosts: client.Hosts(), Tracker: docker.NewInMemoryTracker()})
	pusher, err := resolver.Pusher(ctx, image.Repo.Name())
	if err != nil {
		return nil, err
	}
	var indexes []*made
	var missing []Outcome
	for _, l := range image.Layers {
		f, h, err := store.openWhole(l.Digest, store.Path(l.Digest))
		if err == nil {
			defer f.Close()
			err = verify(h, f)
		} else if !l.Indexable() {
			err = fmt.Errorf("%w: it is %s", ErrKind, l.MediaType)
		}
		if err != nil {
			missing = append(missing, Outcome{l, err})
			continue
		}
		indexes = append(indexes, &made{layer: l, head: h, file: f})
	}
	if len(indexes) == 0 {
		return nil, fmt.Errorf("push index of image %s: %w", image.Manifest.Digest, nothing(missing))
	}
	var entries []Entry
	for _, ix := range indexes {
		e, err := pushLayer(ctx, pusher, ix, progress)
		if err != nil {
			return nil, fmt.Errorf("push index of layer %s: %w", ix.layer.Digest, err)
		}
		entries = append(entries, e)
	}
	prediction, data, err := describePrediction(store, image.Manifest.Digest)
	if err != nil {
		return nil, err
	}
	if err := push(ctx, pusher, prediction, bytes.NewReader(data), nil); err != nil {
		return nil, fmt.Errorf("push prediction: %w", err)
	}
	body, err := encodeArtifact(image.Manifest, prediction, entries, time.Now().UTC().Format(time.RFC3339))
	if err != nil {
		return nil, err
	}
	desc := v1.Descriptor{MediaType: v1.MediaTypeImageManifest, Digest: digest.FromBytes(body), Size: int64(len(body))}
	if err := push(ctx, pusher, desc, bytes.NewReader(body), nil); err != nil {
		return nil, fmt.Errorf("push index manifest: %w", err)
	}
	p := &Pushed{Manifest: desc, Entries: entries, Missing: missing}
	p.Manifest.ArtifactType = ArtifactType
	p.Manifest.Annotations = map[string]string{v1.AnnotationCreated: time.Now().UTC().Format(time.RFC3339)}
	listed, err := image.Repo.ListsReferrer(ctx, image.Manifest.Digest, desc.Digest)
	if err != nil {
		return nil, err
	}
	if !listed {
		p.Tagged = true
		err = tagReferrer(ctx, resolver, image, p.Manifest)
	}
	return p, err
}

// describePrediction is the artifact's configuration: the prediction, or the
// empty one of the image specification.
func describePrediction(store *Store, image digest.Digest) (v1.Descriptor, []byte, error) {
	p, err := store.Prediction(image)
	if err != nil || p == nil {
		return v1.DescriptorEmptyJSON, v1.DescriptorEmptyJSON.Data, err
	}
	b, err := json.Marshal(p)
	return v1.Descriptor{MediaType: PredictionType, Digest: digest.FromBytes(b), Size: int64(len(b))}, b, err
}

func pushLayer(ctx context.Context, pusher remotes.Pusher, ix *made, progress func(int64)) (Entry, error) {
	f, h := ix.file, ix.head
	all, head := digest.Canonical.Digester(), digest.Canonical.Digester()
	if _, err := io.Copy(all.Hash(), f); err != nil {
		return Entry{}, err
	}
	if _, err := io.Copy(head.Hash(), io.NewSectionReader(f, 0, h.Size)); err != nil {
		return Entry{}, err
	}
	e := Entry{
		Layer: ix.layer.Digest, HeadSize: h.Size, HeadDigest: head.Digest(),
		Content: v1.Descriptor{MediaType: LayerType, Digest: all.Digest(), Size: h.IndexSize()},
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return Entry{}, err
	}
	return e, push(ctx, pusher, e.Content, f, progress)
}

// verify reads an index's windows: what a disk has lost is not pushed.
func verify(h *Head, f io.ReaderAt) error {
	for _, g := range h.Groups {
		packed := make([]byte, g.Len)
		if _, err := f.ReadAt(packed, g.Off); err != nil {
			return err
		}
		if _, err := h.unpackGroup(g, packed); err != nil {
			return err
		}
	}
	return nil
}

// push sends a blob or manifest unless the registry has it.
func push(ctx context.Context, pusher remotes.Pusher, desc v1.Descriptor, r io.Reader, progress func(int64)) error {
	w, err := pusher.Push(ctx, desc)
	if errors.Is(err, errdefs.ErrAlreadyExists) {
		if progress != nil {
			progress(desc.Size)
		}
		return nil
	}
	if err != nil {
		return err
	}
	defer w.Close()
	if progress != nil {
		r = &progressReader{r, progress}
	}
	return content.Copy(ctx, w, r, desc.Size, desc.Digest)
}

type progressReader struct {
	r     io.Reader
	count func(int64)
}

func (p *progressReader) Read(b []byte) (int, error) {
	n, err := p.r.Read(b)
	p.count(int64(n))
	return n, err
}

// tagReferrer adds the artifact to the image index that a tag stands for, as
// the distribution specification has it, in place of our older ones.
func tagReferrer(ctx context.Context, resolver remotes.Resolver, image *Image, d v1.Descriptor) error {
	subject := image.Manifest.Digest
	tag := subject.Algorithm().String() + "-" + subject.Encoded()
	index := v1.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: v1.MediaTypeImageIndex}
	_, body, err := image.Repo.Manifest(ctx, tag)
	switch {
	case err == nil:
		if err := json.Unmarshal(body, &index); err != nil {
			return fmt.Errorf("tag %s of %s: %w", tag, image.Repo.Name(), err)
		}
	case !registry.NotFound(err):
		return err
	}
	index.Manifests = slices.DeleteFunc(index.Manifests, func(m v1.Descriptor) bool { return m.ArtifactType == ArtifactType })
	index.Manifests = append(index.Manifests, d)
	if body, err = json.Marshal(index); err != nil {
		return err
	}
	pusher, err := resolver.Pusher(ctx, image.Repo.Name()+":"+tag)
	if err != nil {
		return err
	}
	desc := v1.Descriptor{MediaType: v1.MediaTypeImageIndex, Digest: digest.FromBytes(body), Size: int64(len(body))}
	if err := push(ctx, pusher, desc, bytes.NewReader(body), nil); err != nil {
		return fmt.Errorf("push tag %s: %w", tag, err)
	}
	return nil
}
