package index

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/lacuna-snapshotter/lacuna/fetcher/registry"
)

// Names in the artifact's manifest.
const (
	ArtifactType = "application/vnd.lacuna.index.v1+json"
	LayerType    = "application/vnd.lacuna.index.layer.v1"

	annotationLayer      = "io.lacuna.index.layer"
	annotationHeadSize   = "io.lacuna.index.head.size"
	annotationHeadDigest = "io.lacuna.index.head.digest"
)

// Entry is the index of one layer in an artifact.
type Entry struct {
	Layer      digest.Digest
	Content    v1.Descriptor `json:"Blob"` // as older daemons have written it
	HeadSize   int64
	HeadDigest digest.Digest
}

// Artifact is an image's index.
type Artifact struct {
	Entries    []Entry
	prediction v1.Descriptor
}

// findArtifact looks for an image's index in its repository. It fails with ErrNone
// where there is none.
func findArtifact(ctx context.Context, repo *registry.Repository, image digest.Digest) (*Artifact, error) {
	list, err := repo.Referrers(ctx, image, ArtifactType)
	if err != nil {
		return nil, err
	}
	if len(list) == 0 {
		return nil, fmt.Errorf("%w of image %s in %s", ErrNone, image, repo.Name())
	}
	newest := slices.MaxFunc(list, func(a, b v1.Descriptor) int {
		// RFC 3339 in UTC sorts as text; on a tie the later entry wins.
		if a.Annotations[v1.AnnotationCreated] <= b.Annotations[v1.AnnotationCreated] {
			return -1
		}
		return 1
	})
	_, body, err := repo.Manifest(ctx, newest.Digest.String())
	if err != nil {
		return nil, err
	}
	return decodeArtifact(body, image)
}

func decodeArtifact(body []byte, image digest.Digest) (*Artifact, error) {
	var m v1.Manifest
	if err := json.Unmarshal(body, &m); err != nil {
		return nil, fmt.Errorf("%w artifact: %w", ErrFormat, err)
	}
	if m.ArtifactType != ArtifactType || m.Subject == nil || m.Subject.Digest != image {
		return nil, fmt.Errorf("%w artifact: it is not of image %s", ErrFormat, image)
	}
	a := &Artifact{prediction: m.Config}
	for _, desc := range m.Layers {
		if desc.MediaType != LayerType {
			continue // of a later version, which has ours beside its own
		}
		e := Entry{
			Layer:      digest.Digest(desc.Annotations[annotationLayer]),
			HeadDigest: digest.Digest(desc.Annotations[annotationHeadDigest]),
			Content:    desc,
		}
		var err error
		e.HeadSize, err = strconv.ParseInt(desc.Annotations[annotationHeadSize], 10, 64)
		if err != nil || e.HeadSize < fixedSize || e.HeadSize > min(maxHead, desc.Size) ||
			desc.Digest.Validate() != nil || e.Layer.Validate() != nil || e.HeadDigest.Validate() != nil {
			return nil, fmt.Errorf("%w artifact: entry %s", ErrFormat, desc.Digest)
		}
		a.Entries = append(a.Entries, e)
	}
	return a, nil
}

// FetchPrediction reads the image's prediction, nil where the artifact has none.
func (a *Artifact) FetchPrediction(ctx context.Context, repo *registry.Repository) (*Prediction, error) {
	d := a.prediction
	if d.MediaType != PredictionType {
		return nil, nil
	}
	if d.Size < 2 || d.Size > maxPrediction || d.Digest.Validate() != nil {
		return nil, fmt.Errorf("%w prediction of %d bytes", ErrFormat, d.Size)
	}
	b := make([]byte, d.Size)
	err := repo.Content(d).ReadVerified(ctx, b, 0, func(b []byte) error {
		if got := d.Digest.Algorithm().FromBytes(b); got != d.Digest {
			return fmt.Errorf("%w prediction: it has digest %s", ErrFormat, got)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return decodePrediction(b)
}

// fetchHeadOf reads the head of a layer's index, verified.
func fetchHeadOf(ctx context.Context, repo *registry.Repository, e Entry) ([]byte, error) {
	head, err := repo.Content(e.Content).ReadStart(ctx, e.HeadSize, func(b []byte) error {
		if got := e.HeadDigest.Algorithm().FromBytes(b); got != e.HeadDigest {
			return fmt.Errorf("%w: head has digest %s", ErrFormat, got)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("index of layer %s: %w", e.Layer, err)
	}
	return head, nil
}

// encodeArtifact makes the manifest.
func encodeArtifact(subject, prediction v1.Descriptor, entries []Entry, created string) ([]byte, error) {
	m := v1.Manifest{
		Versioned:    specs.Versioned{SchemaVersion: 2},
		MediaType:    v1.MediaTypeImageManifest,
		ArtifactType: ArtifactType,
		Config:       prediction,
		Subject:      &subject,
		Annotations:  map[string]string{v1.AnnotationCreated: created},
	}
	for _, e := range entries {
		d := e.Content
		d.MediaType = LayerType
		d.Annotations = map[string]string{
			annotationLayer:      e.Layer.String(),
			annotationHeadSize:   strconv.FormatInt(e.HeadSize, 10),
			annotationHeadDigest: e.HeadDigest.String(),
		}
		m.Layers = append(m.Layers, d)
	}
	return json.Marshal(m)
}
