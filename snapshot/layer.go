package snapshot

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/continuity"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/lacuna-snapshotter/lacuna/erofs"
	"github.com/lacuna-snapshotter/lacuna/fetcher/index"
	"github.com/lacuna-snapshotter/lacuna/ondemand"
)

// Layer is one image layer on this node: its bootstrap, its blob and its mount.
// Its directory holds
//
//	layer.json  what it takes to open it again; written last, by rename
//	bootstrap   EROFS metadata, complete
//	*.index*    the index that the bootstrap is of: see package index. It is the
//	            layer's own: one that is made anew may lay the blob out in
//	            another way
//	blob*       the blob with its records: see package ondemand
type Layer struct {
	state  layerState
	dir    string
	target string // mountpoint

	// Guarded by Layers.mu.
	err  error // why the layer is quarantined
	used time.Time

	// Set by open, and then left alone. A quarantined or parked layer has none.
	blob   *ondemand.Blob
	source *layerSource
	gone   chan struct{} // closed when the blob is
}

// layerState is layer.json.
type layerState struct {
	Version   int
	Layer     digest.Digest
	Bootstrap digest.Digest // with Layer, it settles every byte of the blob
	Ref       string        // an image reference whose repository has the layer
	BlobSize  int64
	SpanSize  int64
	Inodes    int64
	Packed    int64 // bytes of the layer in the registry
}

const stateVersion = 2

// key names the layer's blob for the kernel.
func (l *Layer) key() ondemand.Key {
	return ondemand.Key{Volume: "lacuna", Cookie: index.BlobName(l.state.Layer, l.state.Bootstrap)}
}

func (l *Layer) path(name string) string { return filepath.Join(l.dir, name) }

// clear makes room for write, of what an earlier try or a quarantined layer has
// left. A blob stays if it is the same one, also for containers that run on; what
// was filled for another layout goes.
func (l *Layer) clear() error {
	if l.mounted() {
		if err := erofs.Unmount(l.target); err != nil {
			return err
		}
	}
	if old, err := readState(l.dir); err == nil && old.Bootstrap == l.state.Bootstrap {
		return nil
	}
	return os.RemoveAll(l.dir)
}

// write makes the layer's files from a head of a store. The state comes last:
// without it the directory does not count.
func (l *Layer) write(h *index.Head, store *index.Store) error {
	if err := erofs.Check(h.Bootstrap, h.Map.BlobSize); err != nil {
		return err
	}
	own, err := index.OpenStore(l.dir)
	if err != nil {
		return err
	}
	if err := store.Share(l.state.Layer, own); err != nil {
		return err
	}
	if err := continuity.AtomicWriteFile(l.path("bootstrap"), h.Bootstrap, 0o600); err != nil {
		return err
	}
	b, err := json.Marshal(l.state)
	if err != nil {
		return err
	}
	return continuity.AtomicWriteFile(l.path("layer.json"), b, 0o600)
}

// readState reads layer.json of a directory.
func readState(dir string) (s layerState, err error) {
	b, err := os.ReadFile(filepath.Join(dir, "layer.json"))
	if err != nil {
		return s, err
	}
	if err := json.Unmarshal(b, &s); err != nil {
		return s, fmt.Errorf("%s: %w", filepath.Join(dir, "layer.json"), err)
	}
	if s.Version != stateVersion || s.Layer.Validate() != nil || s.Bootstrap.Validate() != nil || s.Layer.Encoded() != filepath.Base(dir) {
		return s, fmt.Errorf("%s: version %d of layer %q", filepath.Join(dir, "layer.json"), s.Version, s.Layer)
	}
	return s, nil
}

// mounted reports whether the mountpoint shows an EROFS file system.
func (l *Layer) mounted() bool {
	var st unix.Statfs_t
	return unix.Statfs(l.target, &st) == nil && uint32(st.Type) == unix.EROFS_SUPER_MAGIC_V1
}

// usage is what the layer has allocated on disk.
func (l *Layer) usage() (snapshots.Usage, error) {
	u := snapshots.Usage{Inodes: l.state.Inodes}
	for _, name := range []string{"layer.json", "bootstrap"} {
		var st unix.Stat_t
		err := unix.Stat(l.path(name), &st)
		if errors.Is(err, unix.ENOENT) {
			continue // quarantined, or half made
		}
		if err != nil {
			return u, &os.PathError{Op: "stat", Path: l.path(name), Err: err}
		}
		u.Size += st.Blocks * 512 // stat(2)'s unit, whatever the file system's is
	}
	if l.blob == nil {
		return u, nil
	}
	n, err := l.blob.Allocated()
	u.Size += n
	return u, err
}
