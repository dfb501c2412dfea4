package index

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/opencontainers/go-digest"

	"github.com/lacuna-snapshotter/lacuna/internal/durable"
)

// Store is a directory of layer indexes, by layer digest: those made on this
// node, and the heads of those found in registries. A file without an origin
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
	f, h, err := s.open(layer, s.Path(layer))
	if err != nil {
		return nil, err
	}
	f.Close()
	return h, nil
}

// open opens an index file of a layer, of which the caller closes the file.
func (s *Store) open(layer digest.Digest, path string) (*os.File, *Head, error) {
	if err := layer.Validate(); err != nil {
		return nil, nil, err
	}
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil, fmt.Errorf("%w for layer %s", ErrNone, layer)
	}
	if err != nil {
		return nil, nil, err
	}
	h, err := readHead(f, layer)
	if err != nil {
		f.Close()
		return nil, nil, err
	}
	return f, h, nil
}

func readHead(f *os.File, layer digest.Digest) (*Head, error) {
	fixed := make([]byte, fixedSize)
	if _, err := f.ReadAt(fixed, 0); err != nil {
		return nil, fmt.Errorf("%w %s: %w", ErrFormat, f.Name(), err)
	}
	size := headSize(fixed)
	if size < fixedSize || size > maxHead {
		return nil, fmt.Errorf("%w %s: head of %d bytes", ErrFormat, f.Name(), size)
	}
	b := make([]byte, size)
	if _, err := f.ReadAt(b, 0); err != nil {
		return nil, fmt.Errorf("%w %s: %w", ErrFormat, f.Name(), err)
	}
	return decodeFor(b, layer)
}

// openWhole opens a layer's index that was made here, with all its windows: one
// from a registry has holes as long as it has an origin.
func (s *Store) openWhole(layer digest.Digest, path string) (*os.File, *Head, error) {
	f, h, err := s.open(layer, path)
	if err != nil {
		return nil, nil, err
	}
	info, err := f.Stat()
	if err == nil && info.Size() != h.IndexSize() {
		err = fmt.Errorf("%w %s: %d bytes, complete it has %d", ErrFormat, path, info.Size(), h.IndexSize())
	}
	if _, found, originErr := s.Origin(layer); path == s.Path(layer) && (found || originErr != nil) {
		err = errors.Join(err, originErr, fmt.Errorf("%w made here for layer %s: what the store has came from a registry", ErrNone, layer))
	}
	if err != nil {
		f.Close()
		return nil, nil, err
	}
	return f, h, nil
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

// Origin is where the rest of an index can be fetched.
type Origin struct {
	Ref   string // an image reference in the repository
	Entry Entry
}

// Put stores the head of an index found elsewhere. The windows are fetched later, from
// its origin.
func (s *Store) Put(layer digest.Digest, head []byte, from Origin) error {
	if _, err := decodeFor(head, layer); err != nil {
		return err
	}
	b, err := json.Marshal(from)
	if err != nil {
		return err
	}
	if err := replace(s.originPath(layer), b); err != nil {
		return err
	}
	return replace(s.Path(layer), head)
}

func (s *Store) originPath(layer digest.Digest) string { return s.Path(layer) + ".source" }

// Origin tells where a layer's index came from. ok is false for one that was
// made here.
func (s *Store) Origin(layer digest.Digest) (from Origin, ok bool, err error) {
	b, err := os.ReadFile(s.originPath(layer))
	if errors.Is(err, os.ErrNotExist) {
		return from, false, nil
	}
	if err == nil {
		err = json.Unmarshal(b, &from)
	}
	return from, err == nil, err
}

// BlobName names a layer's blob as one bootstrap lays it out: the same name, the
// same bytes. A kernel that caches them under this name is never wrong. It is 80
// hexadecimal digits.
func BlobName(layer, bootstrap digest.Digest) string {
	const digits = 16 // of the bootstrap's digest
	return layer.Encoded() + bootstrap.Encoded()[:digits]
}

// Share makes a layer's index part of another store on the same file system. There
// it stays as it is when it is replaced or removed here; windows that come to one
// are in both. It fails with ErrNone where there is none.
func (s *Store) Share(layer digest.Digest, with *Store) error {
	for {
		if err := with.Remove(layer); err != nil {
			return err
		}
		err := os.Link(s.originPath(layer), with.originPath(layer))
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		err = os.Link(s.Path(layer), with.Path(layer))
		if errors.Is(err, os.ErrNotExist) {
			return errors.Join(fmt.Errorf("%w for layer %s", ErrNone, layer), with.Remove(layer))
		}
		if err != nil {
			return err
		}
		// Origin and index must belong together: they were not replaced meanwhile.
		if s.shares(layer, with) {
			return nil
		}
	}
}

// shares reports whether another store has the same index of a layer, by Share or
// Take: where one is damaged, the other is.
func (s *Store) shares(layer digest.Digest, with *Store) bool {
	return sameFile(s.originPath(layer), with.originPath(layer)) && sameFile(s.Path(layer), with.Path(layer))
}

// Take moves a layer's index here from another store on the same file system, in
// place of the one that is here. A process that dies meanwhile leaves the old index,
// perhaps with the origin of the new one: its windows are verified, so that is found
// out.
func (s *Store) Take(layer digest.Digest, from *Store) error {
	err := os.Rename(from.originPath(layer), s.originPath(layer))
	if errors.Is(err, os.ErrNotExist) { // it is complete
		if err = os.Remove(s.originPath(layer)); errors.Is(err, os.ErrNotExist) {
			err = nil
		}
	}
	if err != nil {
		return err
	}
	if err := os.Rename(from.Path(layer), s.Path(layer)); err != nil {
		return err
	}
	return durable.SyncDir(s.dir)
}

// sameFile reports whether two names lead to the same file, or both to none.
func sameFile(a, b string) bool {
	x, errX := os.Stat(a)
	y, errY := os.Stat(b)
	if errors.Is(errX, os.ErrNotExist) && errors.Is(errY, os.ErrNotExist) {
		return true
	}
	return errX == nil && errY == nil && os.SameFile(x, y)
}

// File opens a layer's index for its windows, to be read and added to.
func (s *Store) File(layer digest.Digest) (*os.File, error) {
	return os.OpenFile(s.Path(layer), os.O_RDWR, 0)
}

// Remove drops a layer's index, if there is one.
func (s *Store) Remove(layer digest.Digest) error {
	for _, path := range []string{s.Path(layer), s.originPath(layer)} {
		if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return nil
}

// Layers lists the layers that have an index here.
func (s *Store) Layers() ([]digest.Digest, error) { return s.list(suffix) }

// Images lists the images that have a prediction here, by their manifests.
func (s *Store) Images() ([]digest.Digest, error) { return s.list(predictionSuffix) }

// list is the digests that have a file with a suffix.
func (s *Store) list(suffix string) (list []digest.Digest, err error) {
	entries, err := os.ReadDir(s.dir)
	for _, e := range entries {
		name, ok := strings.CutSuffix(e.Name(), suffix)
		d := digest.Digest(strings.Replace(name, "-", ":", 1))
		if ok && d.Validate() == nil {
			list = append(list, d)
		}
	}
	return list, err
}
