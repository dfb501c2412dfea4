package index

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/opencontainers/go-digest"
)

// Store is a directory of layer indexes, by layer digest: those made on this
// node, and the heads of those found in registries. A file without a source
// beside it is complete.
type Store struct{ dir string }

// OpenStore makes the directory where it is missing.
func OpenStore(dir string) (*Store, error) {
	return &Store{dir}, os.MkdirAll(dir, 0o700)
}

// Path is where the index of a layer is or would be.
func (s *Store) Path(layer digest.Digest) string {
	return filepath.Join(s.dir, layer.Algorithm().String()+"-"+layer.Encoded()+suffix)
}

const suffix = ".index"

// ErrNone says that a layer has no index.
var ErrNone = errors.New("no index")

// Head reads the head of a layer's index. It fails with ErrNone where there is
// none, and with ErrFormat where it is damaged or another layer's.
func (s *Store) Head(layer digest.Digest) (*Head, error) {
	if err := layer.Validate(); err != nil {
		return nil, err
	}
	f, err := os.Open(s.Path(layer))
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("%w for layer %s", ErrNone, layer)
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	fixed := make([]byte, fixedSize)
	if _, err := f.ReadAt(fixed, 0); err != nil {
		return nil, fmt.Errorf("%w %s: %w", ErrFormat, s.Path(layer), err)
	}
	size := headSize(fixed)
	if size < fixedSize || size > maxHead {
		return nil, fmt.Errorf("%w %s: head of %d bytes", ErrFormat, s.Path(layer), size)
	}
	b := make([]byte, size)
	if _, err := f.ReadAt(b, 0); err != nil {
		return nil, fmt.Errorf("%w %s: %w", ErrFormat, s.Path(layer), err)
	}
	return decodeFor(b, layer)
}

// complete reports whether the file has the windows as well, by its size: one
// that was filled from a registry may still have holes.
func (s *Store) complete(h *Head) bool {
	info, err := os.Stat(s.Path(h.Map.Layer))
	return err == nil && info.Size() == h.BlobSize()
}

// decodeFor decodes a head that must be of the given layer.
func decodeFor(b []byte, layer digest.Digest) (*Head, error) {
	h, err := DecodeHead(b)
	if err != nil {
		return nil, fmt.Errorf("index of layer %s: %w", layer, err)
	}
	if h.Map.Layer != layer {
		return nil, fmt.Errorf("%w: it is of layer %s, not of %s", ErrFormat, h.Map.Layer, layer)
	}
	return h, nil
}

// Source is where the rest of an index is to be had.
type Source struct {
	Ref   string // an image reference in the repository
	Entry Entry
}

// Put stores the head of an index found elsewhere. The windows come later, from
// its source.
func (s *Store) Put(layer digest.Digest, head []byte, from Source) error {
	if _, err := decodeFor(head, layer); err != nil {
		return err
	}
	b, err := json.Marshal(from)
	if err != nil {
		return err
	}
	if err := replace(s.sourcePath(layer), b); err != nil {
		return err
	}
	return replace(s.Path(layer), head)
}

func (s *Store) sourcePath(layer digest.Digest) string { return s.Path(layer) + ".source" }

// Source tells where a layer's index came from. ok is false for one that was
// made here.
func (s *Store) Source(layer digest.Digest) (from Source, ok bool, err error) {
	b, err := os.ReadFile(s.sourcePath(layer))
	if errors.Is(err, os.ErrNotExist) {
		return from, false, nil
	}
	if err == nil {
		err = json.Unmarshal(b, &from)
	}
	return from, err == nil, err
}

// BlobName names a layer's blob as one bootstrap lays it out: the same name, the
// same bytes. Whoever remembers them by it, as kernels do, is never wrong. It is 80
// hexadecimal digits.
func BlobName(layer, bootstrap digest.Digest) string {
	const digits = 16 // of the bootstrap's digest
	return layer.Encoded() + bootstrap.Encoded()[:digits]
}

// Share makes a layer's index part of another store on the same file system. There
// it stays as it is when it is replaced or removed here; windows that come to one
// are in both.
func (s *Store) Share(layer digest.Digest, with *Store) error {
	if err := with.Remove(layer); err != nil {
		return err
	}
	err := os.Link(s.sourcePath(layer), with.sourcePath(layer))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return os.Link(s.Path(layer), with.Path(layer))
}

// File opens a layer's index for its windows, to be read and added to.
func (s *Store) File(layer digest.Digest) (*os.File, error) {
	return os.OpenFile(s.Path(layer), os.O_RDWR, 0)
}

// Remove drops a layer's index, if there is one.
func (s *Store) Remove(layer digest.Digest) error {
	for _, path := range []string{s.Path(layer), s.sourcePath(layer)} {
		if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return nil
}

// Layers lists the layers that have an index here.
func (s *Store) Layers() ([]digest.Digest, error) {
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return nil, err
	}
	var list []digest.Digest
	for _, e := range entries {
		name, ok := strings.CutSuffix(e.Name(), suffix)
		d := digest.Digest(strings.Replace(name, "-", ":", 1))
		if ok && d.Validate() == nil {
			list = append(list, d)
		}
	}
	return list, nil
}
