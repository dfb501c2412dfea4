package index

import (
	"os"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/lacuna-snapshotter/lacuna/fetcher/registry"
	"github.com/lacuna-snapshotter/lacuna/fetcher/spans"
)

// Layer is a layer of a store, open for reading.
type Layer struct {
	spans.Layer
	file *os.File
}

// Open opens the layer of a head of this store, which it takes over, and whose
// bootstrap it drops. The layer's bytes come from the repository of ref, an image
// that has the layer, and windows that the store lacks from where the index was
// found.
func (s *Store) Open(client *registry.Client, ref string, head *Head) (*Layer, error) {
	d := head.Map.Layer
	repo, _, err := client.Repository(ref)
	if err != nil {
		return nil, err
	}
	from, found, err := s.Origin(d)
	if err != nil {
		return nil, err
	}
	var remote ReadRange
	if found {
		indexRepo, _, err := client.Repository(from.Ref)
		if err != nil {
			return nil, err
		}
		remote = indexRepo.Content(from.Entry.Content).Patient().ReadVerified
	}
	file, err := s.File(d)
	if err != nil {
		return nil, err
	}
	head.Bootstrap = nil // large, and of no use to readers of data
	return &Layer{
		Layer: spans.Layer{
			Map:     head.Map,
			Remote:  repo.Content(v1.Descriptor{Digest: d, Size: head.Map.PackedSize}).Patient(),
			Windows: NewWindows(head, file, remote),
		},
		file: file,
	}, nil
}

// Close frees what Open took. Fetches must be over.
func (l *Layer) Close() { l.file.Close() }
