package index

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
)

// shortest is how many characters of a digest name it at least.
const shortest = 6

// RemoveMatching drops the index of one layer, or an image's prediction and the
// indexes of its layers that no other image here has. Name is a digest, or how its
// hexadecimal digits begin. It returns what was removed, and fails with ErrNone
// where nothing here is named so.
func (s *Store) RemoveMatching(name string) (removed []digest.Digest, err error) {
	layers, err := s.Layers()
	if err != nil {
		return nil, err
	}
	images, err := s.Images()
	if err != nil {
		return nil, err
	}
	var found []digest.Digest
	for _, d := range append(layers, images...) {
		if d.String() == name || len(name) >= shortest && strings.HasPrefix(d.Encoded(), name) {
			found = append(found, d)
		}
	}
	switch {
	case len(found) == 0:
		return nil, fmt.Errorf("%w here is named %q; lacunactl index list lists them", ErrNone, name)
	case len(found) > 1:
		return nil, fmt.Errorf("%q is the beginning of %d digests here", name, len(found))
	case slices.Contains(layers, found[0]):
		return found, errors.Join(s.Remove(found[0]), s.removeDense(found[0]))
	}
	return s.removeImage(found[0], images)
}

func (s *Store) removeImage(image digest.Digest, images []digest.Digest) (removed []digest.Digest, err error) {
	layers := map[digest.Digest]bool{}
	for _, i := range images {
		p, err := s.Prediction(i)
		if err != nil && !errors.Is(err, ErrFormat) {
			return nil, err
		}
		for _, l := range p.layers() {
			layers[l] = layers[l] || i != image // kept
		}
	}
	for l, kept := range layers {
		if kept {
			continue
		}
		if err := errors.Join(s.Remove(l), s.removeDense(l)); err != nil {
			return removed, err
		}
		removed = append(removed, l)
	}
	return append(removed, image), os.Remove(s.predictionPath(image))
}
