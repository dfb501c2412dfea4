package index

import (
	"archive/tar"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/lacuna-snapshotter/lacuna/fetcher/spans"
)

// Layout is an image of an OCI layout: a directory, or a tar of one as buildx,
// nerdctl save and ctr images export write it. Its layers are as the registry has
// them. What is read is not verified here.
type Layout struct {
	dir   string                       // empty for a tar
	tar   *os.File                     // with files in it:
	files map[string]*io.SectionReader // by name
	image v1.Descriptor                // of the index.json
}

const (
	// containerd's name of an image in a layout, beside the specification's
	// org.opencontainers.image.ref.name.
	imageName = "io.containerd.image.name"
	// maxFiles bounds the files in a tar.
	maxFiles = 1 << 16
	// maxSmall bounds manifests, as the distribution specification asks registries to
	// accept them.
	maxSmall = 4 << 20
)

// OpenLayout finds an image in a layout: the one that has ref as its name, or its
// tag, or the only one.
func OpenLayout(location, ref string) (l *Layout, err error) {
	info, err := os.Stat(location)
	if err != nil {
		return nil, err
	}
	l = &Layout{dir: location}
	if !info.IsDir() {
		if l, err = openArchive(location); err != nil {
			return nil, fmt.Errorf("%s: %w", location, err)
		}
	}
	if l.image, err = l.choose(ref); err != nil {
		l.Close()
		return nil, fmt.Errorf("%s: %w", location, err)
	}
	return l, nil
}

// openArchive notes where the files of a tar are.
func openArchive(location string) (*Layout, error) {
	f, err := os.Open(location)
	if err != nil {
		return nil, err
	}
	l := &Layout{tar: f, files: map[string]*io.SectionReader{}}
	r := tar.NewReader(f)
	for len(l.files) < maxFiles {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return l, nil
		}
		var at int64
		if err == nil {
			at, err = f.Seek(0, io.SeekCurrent)
		}
		if err != nil {
			f.Close()
			return nil, fmt.Errorf("it is neither a directory nor a tar of an OCI layout: %w", err)
		}
		if h.Typeflag == tar.TypeReg {
			l.files[path.Clean(h.Name)] = io.NewSectionReader(f, at, h.Size)
		}
	}
	f.Close()
	return nil, fmt.Errorf("a tar of more than %d files", maxFiles)
}

// choose finds the image in index.json.
func (l *Layout) choose(ref string) (v1.Descriptor, error) {
	b, err := l.small("index.json")
	if errors.Is(err, os.ErrNotExist) {
		return v1.Descriptor{}, errors.New("no OCI layout: it has no index.json (layers as docker save writes them without containerd's image store are not those of a registry, and cannot be indexed)")
	}
	if err != nil {
		return v1.Descriptor{}, err
	}
	var list v1.Index
	if err := json.Unmarshal(b, &list); err != nil {
		return v1.Descriptor{}, fmt.Errorf("index.json: %w", err)
	}
	var names []string
	for _, d := range list.Manifests {
		short := d.Annotations[v1.AnnotationRefName]
		name := cmp.Or(d.Annotations[imageName], short, "one without a name")
		if name == ref || short != "" && (short == ref || strings.HasSuffix(ref, ":"+short)) {
			return d, nil
		}
		names = append(names, name)
	}
	if len(list.Manifests) == 1 {
		return list.Manifests[0], nil
	}
	slices.Sort(names)
	return v1.Descriptor{}, fmt.Errorf("image %s is not in the layout, which has %q", ref, names)
}

// Manifest implements Images. The image's own is found under whatever tag.
func (l *Layout) Manifest(_ context.Context, object string) (v1.Descriptor, []byte, error) {
	want, err := digest.Parse(object)
	if err != nil {
		want = l.image.Digest
	}
	if err := want.Validate(); err != nil {
		return v1.Descriptor{}, nil, fmt.Errorf("manifest %q: %w", want, err)
	}
	b, err := l.small(contentPath(want))
	if err != nil {
		return v1.Descriptor{}, nil, fmt.Errorf("manifest %s: %w", want, err)
	}
	if got := want.Algorithm().FromBytes(b); got != want {
		return v1.Descriptor{}, nil, fmt.Errorf("manifest %s has digest %s", want, got)
	}
	var m struct {
		MediaType string `json:"mediaType"`
	}
	_ = json.Unmarshal(b, &m) // the caller decodes all of it
	return v1.Descriptor{MediaType: m.MediaType, Digest: want, Size: int64(len(b))}, b, nil
}

// Content implements Images.
func (l *Layout) Content(desc v1.Descriptor) spans.Remote { return layoutContent{l, desc} }

// Close frees the layout, after what was opened in it was closed.
func (l *Layout) Close() error {
	if l.tar == nil {
		return nil
	}
	return l.tar.Close()
}

func contentPath(d digest.Digest) string {
	return path.Join("blobs", d.Algorithm().String(), d.Encoded())
}

// open opens a file of the layout.
func (l *Layout) open(name string) (*io.SectionReader, io.Closer, error) {
	if l.tar != nil {
		r := l.files[name]
		if r == nil {
			return nil, nil, &os.PathError{Op: "open", Path: name, Err: os.ErrNotExist}
		}
		return io.NewSectionReader(r, 0, r.Size()), io.NopCloser(nil), nil
	}
	f, err := os.Open(filepath.Join(l.dir, filepath.FromSlash(name)))
	if err != nil {
		return nil, nil, err
	}
	info, err := f.Stat()
	if err != nil {
		f.Close()
		return nil, nil, err
	}
	return io.NewSectionReader(f, 0, info.Size()), f, nil
}

func (l *Layout) small(name string) ([]byte, error) {
	r, c, err := l.open(name)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	if r.Size() > maxSmall {
		return nil, fmt.Errorf("%s has %d bytes, more than %d", name, r.Size(), maxSmall)
	}
	return io.ReadAll(r)
}

// layoutContent is what a descriptor names in a layout.
type layoutContent struct {
	layout *Layout
	desc   v1.Descriptor
}

// Open implements spans.Remote.
func (b layoutContent) Open(_ context.Context, off, n int64) io.ReadCloser {
	err := b.desc.Digest.Validate()
	var r *io.SectionReader
	var c io.Closer
	if err == nil {
		r, c, err = b.layout.open(contentPath(b.desc.Digest))
	}
	if err == nil && r.Size() != b.desc.Size {
		err = errors.Join(fmt.Errorf("content %s has %d bytes, its descriptor says %d", b.desc.Digest, r.Size(), b.desc.Size), c.Close())
	}
	if err != nil {
		return failed{err}
	}
	return struct {
		io.Reader
		io.Closer
	}{io.NewSectionReader(r, off, n), c}
}

// failed is a reader of what could not be opened.
type failed struct{ err error }

func (f failed) Read([]byte) (int, error) { return 0, f.err }
func (failed) Close() error               { return nil }
