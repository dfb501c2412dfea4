package layer

import (
	"bytes"
	"log/slog"
	"os"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/lacuna-snapshotter/lacuna/erofs"
	"github.com/lacuna-snapshotter/lacuna/fetcher/index"
	"github.com/lacuna-snapshotter/lacuna/fetcher/layertest"
	"github.com/lacuna-snapshotter/lacuna/fetcher/spans"
	"github.com/lacuna-snapshotter/lacuna/snapshot/dirs"
)

// writeLayout writes a layer's directory with one of many layouts, as a rebuild does
// when the index is another one. The index itself is left out.
func writeLayout(t *testing.T, d *dirs.Dirs, layer digest.Digest, layout uint64) *files {
	t.Helper()
	tree, err := erofs.ReadTar(t.Context(), bytes.NewReader(layertest.Tar(t, 3, layout)), erofs.Options{})
	if err != nil {
		t.Fatal(err)
	}
	bootstrap, err := tree.Encode()
	if err != nil {
		t.Fatal(err)
	}
	head := &index.Head{Bootstrap: bootstrap, Map: &spans.Map{Layer: layer, BlobSize: tree.BlobSize, SpanSize: 64 << 10}}
	f, _, err := write(d, Target{Ref: "registry.example/app:1", Layer: layer}, layer.Encoded()[:12], func(*index.Store) (*index.Head, error) { return head, nil })
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// TestTwoDirectories lets the daemon die between the writing of a layer's new
// directory and the removal of the old one, under a clock that was set back: the
// later counts.
func TestTwoDirectories(t *testing.T) {
	for _, order := range [][]uint64{{1, 2}, {2, 1}, {1, 2, 3}, {3, 2, 1}, {1, 2, 1}} {
		root := t.TempDir()
		d, err := dirs.Open(root, func(string) bool { return false })
		if err != nil {
			t.Fatal(err)
		}
		layer := digest.FromString("a layer")
		var last *files
		for i, layout := range order {
			last = writeLayout(t, d, layer, layout)
			clock := time.Now().Add(-time.Duration(i) * time.Hour)
			if err := os.Chtimes(last.path("layer.json"), clock, clock); err != nil {
				t.Fatal(err)
			}
		}
		l := &Set{Config: Config{Root: root, Log: slog.New(slog.DiscardHandler)}, dirs: d}
		found, broken, err := l.readAll()
		if err != nil || len(found) != 1 || len(broken) != 0 {
			t.Fatal(found, broken, err)
		}
		if found[layer].dir != last.dir {
			t.Errorf("written in the order %v: an earlier directory counts", order)
		}
	}
}
