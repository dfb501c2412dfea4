package metamorphic

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/lacuna-snapshotter/lacuna/fetcher/index"
	"github.com/lacuna-snapshotter/lacuna/fetcher/layertest"
	"github.com/lacuna-snapshotter/lacuna/fetcher/spans"
)

func bytesReader(b []byte) io.Reader { return bytes.NewReader(b) }

// file is what a file must hold.
type file struct {
	data []byte
	sum  string
}

func newFile(data []byte) *file { return &file{data, sumOf(data)} }

func sumOf(data []byte) string {
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}

// content is what a file system must show: its regular files.
type content map[string]*file

// with returns what an overlay of upper on c shows.
func (c content) with(upper content) content {
	all := maps.Clone(c)
	if all == nil {
		all = content{}
	}
	maps.Copy(all, upper)
	return all
}

// layer is one layer of the images.
type layer struct {
	name    string
	digest  digest.Digest
	tar     []byte
	packed  []byte
	files   content
	indexes [][]byte // one for each layout
}

// Image layers: two images on one base, a layer in two places, and a layer
// without an index below one with.
const (
	base = iota
	middle
	top
	other
	unindexed
	layerCount
)

var imageLayers = [][]int{{base, middle, top}, {base, other}, {base, unindexed, middle}}

// layouts are the ways in which indexes lay a layer out.
var layouts = []spans.BuildOptions{
	{},
	{SpanSize: 8 << 10, Spacing: 64 << 10, Grain: 4 << 10},
	{SpanSize: 4 << 10},
}

// makeLayers makes the layers and their indexes, in dir.
func makeLayers(t *testing.T, dir string) []*layer {
	var list []*layer
	for n := range layerCount {
		r := rand.New(rand.NewPCG(uint64(n), 3))
		l := &layer{name: [...]string{"base", "middle", "top", "other", "unindexed"}[n], files: content{}}
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		add := func(h *tar.Header, data []byte) {
			h.ModTime, h.Size = time.Unix(1700000000, 0), int64(len(data))
			if err := w.WriteHeader(h); err != nil {
				t.Fatal(err)
			}
			if _, err := w.Write(data); err != nil {
				t.Fatal(err)
			}
		}
		for _, d := range []string{"etc/", "lib/"} {
			add(&tar.Header{Name: d, Typeflag: tar.TypeDir, Mode: 0o755}, nil)
		}
		for i, size := range []int{0, 1, 4095, 4097, 64 << 10, 200 << 10, r.IntN(30000), r.IntN(100000)} {
			name := fmt.Sprintf("lib/%s%d", l.name, i)
			l.files[name] = newFile(layertest.Content(r, size))
			add(&tar.Header{Name: name, Mode: 0o644}, l.files[name].data)
		}
		l.files["etc/conf"] = newFile(fmt.Appendf(nil, "of layer %s\n%s", l.name, layertest.Content(r, 9000)))
		add(&tar.Header{Name: "etc/conf", Mode: 0o644}, l.files["etc/conf"].data)
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		l.tar, l.packed = b.Bytes(), layertest.Gzip(t, b.Bytes())
		l.digest = digest.FromBytes(l.packed)
		if n != unindexed {
			for i, layout := range layouts {
				path := filepath.Join(dir, fmt.Sprintf("%s.%d", l.name, i))
				if _, _, err := index.Create(t.Context(), bytes.NewReader(l.packed), path, layout, index.Expect{}); err != nil {
					t.Fatal(err)
				}
				b, err := os.ReadFile(path)
				if err != nil {
					t.Fatal(err)
				}
				l.indexes = append(l.indexes, b)
			}
		}
		list = append(list, l)
	}
	return list
}

// putIndex places a layer's index in a root's store, as lacunactl index create does.
func (l *layer) putIndex(root string, layout int) error {
	store, err := index.OpenStore(filepath.Join(root, "index"))
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Join(root, "index"), ".new-*")
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.Write(l.indexes[layout]); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	return os.Rename(f.Name(), store.Path(l.digest))
}

// dropIndex takes it away.
func (l *layer) dropIndex(root string) error {
	store, err := index.OpenStore(filepath.Join(root, "index"))
	if err != nil {
		return err
	}
	if err := os.Remove(store.Path(l.digest)); err != nil && !os.IsNotExist(err) {
		return err
	}
	return nil
}

// chainID is the name of a chain of layers.
func chainID(layers []*layer) string {
	id := ""
	for _, l := range layers {
		id = digest.FromString(id + " " + l.digest.String()).String()
	}
	return id
}

// disk is an ext4 in memory.
type disk struct {
	image, dir string
}

// newDisk makes a file system of so many bytes and mounts it. Its journal is
// written when a sync asks for it, not by the clock: a copy that is taken between
// two moments would be of neither.
func newDisk(image, dir string, size int64) (*disk, error) {
	d := &disk{image, dir}
	if err := sh(`truncate -s "$2" "$1"; mke2fs -q -t ext4 -E lazy_itable_init=0,lazy_journal_init=1 "$1"; mkdir -p "$3"`, image, fmt.Sprint(size), dir); err != nil {
		return nil, err
	}
	return d, d.mount()
}

func (d *disk) mount() error {
	return sh(`mount -o loop,commit=900,noatime "$1" "$2"`, d.image, d.dir)
}

func (d *disk) unmount() error { return unix.Unmount(d.dir, 0) }

// copy copies what is on the device just now. Two copies that are the same show
// that nothing was written between.
func (d *disk) copy(to string) error {
	return sh(`cp --sparse=always "$1" "$2"; for i in 1 2 3 4 5 6 7 8 9; do
		if cmp -s "$1" "$2"; then exit 0; fi
		cp --sparse=always "$1" "$2"
	done; echo "the device does not come to rest"; exit 1`, d.image, to)
}
