package layer

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/continuity"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/lacuna-snapshotter/lacuna/erofs"
	"github.com/lacuna-snapshotter/lacuna/fetcher/index"
	"github.com/lacuna-snapshotter/lacuna/internal/durable"
	"github.com/lacuna-snapshotter/lacuna/ondemand"
	"github.com/lacuna-snapshotter/lacuna/snapshot/dirs"
)

// files is what a layer keeps on disk. Its directory, whose name is
// index.BlobName's, so that it holds one layout of one layer, has
//
//	layer.json  a layerState
//	bootstrap   EROFS metadata, complete; never written again
//	*.index*    the index that the bootstrap is of: see package index. It is the
//	            layer's own: one that is made later may lay the blob out in
//	            another way
//	blob*       the blob with its records: see package ondemand
type files struct {
	layerState
	dir    string
	target string // mountpoint
}

// layerState is layer.json.
type layerState struct {
	Version    int
	Layer      digest.Digest
	Bootstrap  digest.Digest // with Layer, it determines every byte of the blob
	Mountpoint string        // its name below m
	Ref        string        // an image reference whose repository has the layer
	Manifest   digest.Digest // that image's, for its prediction; may be empty
	BlobSize   int64
	SpanSize   int64
	Inodes     int64
	Packed     int64 // bytes of the layer in the registry
	// Spans is the digest of the digests of all spans, which an index that takes the
	// place of the own one must have as well; empty in a state of an earlier version.
	Spans      digest.Digest
	Generation int64 // more than that of any earlier directory of the layer; 0 in a state of an earlier version
}

const stateVersion = 3

func (s layerState) name() string { return index.BlobName(s.Layer, s.Bootstrap) }

// key names the layer's blob for the kernel.
func (s layerState) key() ondemand.Key { return ondemand.Key{Volume: "lacuna", Cookie: s.name()} }

func (s layerState) image() Target {
	return Target{Ref: s.Ref, Manifest: s.Manifest, Layer: s.Layer}
}

// at gives a state its place below a root.
func (s layerState) at(root string) *files {
	return &files{s, filepath.Join(root, dirs.Layers, s.name()), filepath.Join(root, dirs.Mounts, s.Mountpoint)}
}

func (f *files) path(name string) string { return filepath.Join(f.dir, name) }

// readFiles reads the state of a directory below layers. Where the state cannot be
// used, f has the layer's digest alone, if the directory's name tells it.
func readFiles(root, name string) (f *files, err error) {
	dir := filepath.Join(root, dirs.Layers, name)
	f = &files{dir: dir}
	if len(name) > digest.SHA256.Size()*2 {
		f.Layer = digest.NewDigestFromEncoded(digest.SHA256, name[:digest.SHA256.Size()*2])
	}
	b, err := os.ReadFile(f.path("layer.json"))
	if err != nil {
		return f, err
	}
	var s layerState
	if err := json.Unmarshal(b, &s); err != nil {
		return f, fmt.Errorf("%s: %w", f.path("layer.json"), err)
	}
	if s.Version != stateVersion || !Indexable(s.Layer) || !Indexable(s.Bootstrap) || s.name() != name ||
		!filepath.IsLocal(s.Mountpoint) || filepath.Base(s.Mountpoint) != s.Mountpoint {
		return f, fmt.Errorf("%s is not this directory's state: version %d of layer %q with mountpoint %q", f.path("layer.json"), s.Version, s.Layer, s.Mountpoint)
	}
	return s.at(root), nil
}

// write makes a layer's directory, or repairs an existing one, from the index that find
// puts into a store. All that it writes is of that index, even when another is made
// meanwhile. Bytes of another layout are never reused: a directory whose bootstrap is
// not that of the index is replaced whole, and kept is false.
func write(d *dirs.Dirs, t Target, mountpoint string, find func(into *index.Store) (*index.Head, error)) (f *files, kept bool, err error) {
	temp, done, err := d.Temp()
	if err != nil {
		return nil, false, err
	}
	defer done()
	own, err := index.OpenStore(temp)
	if err != nil {
		return nil, false, err
	}
	head, err := find(own)
	if err != nil {
		return nil, false, err
	}
	if err := erofs.Check(head.Bootstrap, head.Map.BlobSize); err != nil {
		return nil, false, err
	}
	image, err := erofs.Open(head.Bootstrap)
	if err != nil {
		return nil, false, err
	}
	generation, err := nextGeneration(d.Root(), t.Layer)
	if err != nil {
		return nil, false, err
	}
	f = layerState{
		Version: stateVersion, Layer: t.Layer, Bootstrap: digest.FromBytes(head.Bootstrap), Ref: t.Ref, Manifest: t.Manifest,
		Mountpoint: mountpoint,
		BlobSize:   head.Map.BlobSize, SpanSize: head.Map.SpanSize, Inodes: int64(image.Inodes), Packed: head.Map.PackedSize,
		Spans:      head.Spans(),
		Generation: generation,
	}.at(d.Root())
	if err := f.clear(d); err != nil {
		return nil, false, err
	}
	if b, err := os.ReadFile(f.path("bootstrap")); err == nil && digest.FromBytes(b) == f.Bootstrap {
		return f, true, f.repair(temp)
	}
	if err := continuity.AtomicWriteFile(filepath.Join(temp, "bootstrap"), head.Bootstrap, 0o600); err != nil {
		return nil, false, err
	}
	if err := f.writeState(temp); err != nil {
		return nil, false, err
	}
	return f, false, d.Install(temp, f.dir)
}

// nextGeneration is more than the generation of every directory that a layer has. A
// clock would not do: it may be set back.
func nextGeneration(root string, layer digest.Digest) (int64, error) {
	entries, err := os.ReadDir(filepath.Join(root, dirs.Layers))
	if err != nil {
		return 0, err
	}
	next := int64(1)
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), layer.Encoded()) {
			continue
		}
		if f, err := readFiles(root, e.Name()); err == nil {
			next = max(next, f.Generation+1)
		}
	}
	return next, nil
}

// clear moves everything that is not a regular file from the layer's directory to the
// trash.
func (f *files) clear(d *dirs.Dirs) error {
	entries, err := os.ReadDir(f.dir)
	if err != nil {
		return nil //nolint:nilerr // it is missing, or is no directory and is replaced
	}
	var errs []error
	for _, e := range entries {
		if !e.Type().IsRegular() {
			errs = append(errs, d.Discard(f.path(e.Name())))
		}
	}
	return errors.Join(errs...)
}

// regular fails where a path is not a regular file. A symlink to one is not.
func regular(path string) error {
	info, err := os.Lstat(path)
	if err == nil && !info.Mode().IsRegular() {
		err = &os.PathError{Op: "open", Path: path, Err: fmt.Errorf("%s, not a file", info.Mode())}
	}
	return err
}

// repair replaces the index and the state of a directory whose bootstrap is right.
// Meanwhile it has no state, so that a daemon which starts does not use it.
func (f *files) repair(temp string) error {
	if err := os.Remove(f.path("layer.json")); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	old, err := index.OpenStore(f.dir)
	if err != nil {
		return err
	}
	if err := old.Remove(f.Layer); err != nil {
		return err
	}
	entries, err := os.ReadDir(temp)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if err := os.Rename(filepath.Join(temp, e.Name()), f.path(e.Name())); err != nil {
			return err
		}
	}
	if err := durable.SyncDir(f.dir); err != nil {
		return err
	}
	if err := f.writeState(f.dir); err != nil {
		return err
	}
	return durable.SyncDir(f.dir)
}

func (f *files) writeState(dir string) error {
	b, err := json.Marshal(f.layerState)
	if err != nil {
		return err
	}
	return continuity.AtomicWriteFile(filepath.Join(dir, "layer.json"), b, 0o600)
}

// mounted reports whether the mountpoint shows an EROFS file system. A symlink is no
// mountpoint, whatever it leads to.
func (f *files) mounted() bool {
	info, err := os.Lstat(f.target)
	return err == nil && info.IsDir() && erofs.Mounted(f.target)
}

// discardBlob moves a file that is not the blob, and its records, to the trash.
func (f *files) discardBlob(d *dirs.Dirs) error {
	temp, done, err := d.Temp()
	if err != nil {
		return err
	}
	defer done()
	var errs []error
	for _, name := range blobFiles {
		if err := os.Rename(f.path(name), filepath.Join(temp, name)); err != nil && !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// blobFiles are the files of package ondemand, the records before the bytes.
var blobFiles = []string{"blob.spans", "blob.durable", "blob.durable.new", "blob"}

// empty removes the blob, which must be closed, and its records before it.
func (f *files) empty() error {
	var errs []error
	for _, name := range blobFiles {
		if err := os.Remove(f.path(name)); err != nil && !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// usage is what the files except the blob have allocated on disk.
func (f *files) usage() (snapshots.Usage, error) {
	u := snapshots.Usage{Inodes: f.Inodes}
	for _, name := range []string{"layer.json", "bootstrap"} {
		var st unix.Stat_t
		err := unix.Stat(f.path(name), &st)
		if errors.Is(err, unix.ENOENT) {
			continue // of a quarantined layer
		}
		if err != nil {
			return u, &os.PathError{Op: "stat", Path: f.path(name), Err: err}
		}
		u.Size += st.Blocks * 512 // stat(2) counts blocks of 512 bytes on every file system
	}
	return u, nil
}

// reachable reports whether a process may reach the file system of a layer's directory,
// through any mount. The caller must have no file of the directory open.
func reachable(dir string) bool {
	for _, name := range []string{"bootstrap", "blob"} {
		path := filepath.Join(dir, name)
		info, err := os.Lstat(path)
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ENOTDIR) || err == nil && !info.Mode().IsRegular() {
			continue
		}
		if used, err := erofs.InUse(path); used && !errors.Is(err, os.ErrNotExist) {
			return true
		}
	}
	return false
}
