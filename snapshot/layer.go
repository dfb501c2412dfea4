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
	Version  int
	Layer    digest.Digest
	Ref      string // an image reference whose repository has the layer
	BlobSize int64
	SpanSize int64
	Inodes   int64
	Packed   int64 // bytes of the layer in the registry
}

const stateVersion = 1

// key names the layer's blob for the kernel: digits only, since cachefiles makes
// a file name of it.
func (l *Layer) key() ondemand.Key {
	return ondemand.Key{Volume: "lacuna", Cookie: l.state.Layer.Encoded()}
}

func (l *Layer) path(name string) string { return filepath.Join(l.dir, name) }

// write makes the layer's files from a head. The state comes last: without it
// the directory does not count.
func (l *Layer) write(h *index.Head) error {
	if err := erofs.Check(h.Bootstrap, h.Map.BlobSize); err != nil {
		return err
	}
	if err := os.MkdirAll(l.dir, 0o700); err != nil {
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
	if s.Version != stateVersion || s.Layer.Validate() != nil || s.Layer.Encoded() != filepath.Base(dir) {
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
