package snapshot

import (
	"context"
	"os"
	"sync"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/lacuna-snapshotter/lacuna/fetcher"
	"github.com/lacuna-snapshotter/lacuna/fetcher/index"
	"github.com/lacuna-snapshotter/lacuna/fetcher/registry"
)

// layerSource is a layer's ondemand.Source. Its map, the large part, is loaded
// with the first hole and dropped when there are none left.
type layerSource struct {
	layer  digest.Digest
	ref    string
	store  *index.Store
	client *registry.Client

	mu   sync.Mutex
	open *fetcher.Layer
	file *os.File
}

func (s *layerSource) load() (*fetcher.Layer, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.open != nil {
		return s.open, nil
	}
	head, err := s.store.Head(s.layer)
	if err != nil {
		return nil, err
	}
	repo, _, err := s.client.Repository(s.ref)
	if err != nil {
		return nil, err
	}
	from, found, err := s.store.Source(s.layer)
	if err != nil {
		return nil, err
	}
	var remote index.ReadRange
	if found {
		indexRepo, _, err := s.client.Repository(from.Ref)
		if err != nil {
			return nil, err
		}
		remote = indexRepo.Blob(from.Entry.Blob).ReadAt
	}
	file, err := s.store.File(s.layer)
	if err != nil {
		return nil, err
	}
	s.file = file
	head.Bootstrap = nil // the mount has it
	s.open = &fetcher.Layer{
		Map:     head.Map,
		Remote:  repo.Blob(v1.Descriptor{Digest: s.layer, Size: head.Map.PackedSize}),
		Windows: index.NewWindows(head, file, remote),
	}
	return s.open, nil
}

// Grow implements ondemand.Source.
func (s *layerSource) Grow(first, last int64) (int64, int64) {
	l, err := s.load()
	if err != nil {
		return first, last // Fetch will say why
	}
	return l.Grow(first, last)
}

// Fetch implements ondemand.Source.
func (s *layerSource) Fetch(ctx context.Context, first, last int64, put func(int64, []byte) error) error {
	l, err := s.load()
	if err != nil {
		return err
	}
	return l.Fetch(ctx, first, last, put)
}

// drop frees what load took. Fetches must be over.
func (s *layerSource) drop() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.file != nil {
		s.file.Close()
	}
	s.open, s.file = nil, nil
}
