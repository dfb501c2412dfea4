package layer_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/lacuna-snapshotter/lacuna/snapshot/dirs"
	"github.com/lacuna-snapshotter/lacuna/snapshot/layer"
	"github.com/lacuna-snapshotter/lacuna/snapshot/snapshottest"
)

// TestHalfDirectory starts over the directory of a layer with holes in which a file is
// missing or is not a file: the layer is rebuilt, also below mounts that an earlier
// daemon has left.
func TestHalfDirectory(t *testing.T) {
	snapshottest.NeedFanotify(t)
	directory := func(path string) error {
		return errors.Join(os.RemoveAll(path), os.MkdirAll(filepath.Join(path, "sub"), 0o700))
	}
	link := func(path string) error {
		return errors.Join(os.RemoveAll(path), os.Symlink("nowhere", path))
	}
	for what, damage := range map[string]func(path string) error{"missing": os.RemoveAll, "a directory": directory, "a symlink": link} {
		for _, name := range []string{"blob", "blob.spans", "blob.durable", "bootstrap", "layer.json", "sha256-*.index"} {
			for _, mounts := range []string{"gone", "alive"} {
				t.Run(name+" is "+what+" with mounts "+mounts, func(t *testing.T) {
					root := t.TempDir()
					n := snapshottest.New(t, root)
					img := snapshottest.LazyImage(t, n)
					l := look(t, n, img.Layers[0])
					if err := errors.Join(l.Blob().Fill(t.Context(), 0, 1), l.Blob().Sync()); err != nil {
						t.Fatal(err)
					}
					end, group := n.TearDown, (*os.File)(nil)
					if mounts == "alive" {
						end, group = n.Stop, snapshottest.Hold(t, n)
					}
					if err := end(); err != nil {
						t.Fatal(err)
					}
					paths, err := filepath.Glob(l.Files().Path(name))
					if err != nil || len(paths) != 1 {
						t.Fatal(paths, err)
					}
					if err := damage(paths[0]); err != nil {
						t.Fatal(err)
					}
					if n, err = snapshottest.Start(t.Context(), root, group, snapshottest.Log(t)); err != nil {
						t.Fatal(err)
					}
					t.Cleanup(func() { _ = n.TearDown() })
					img.ReadsRight(t, n) // a container's start rebuilds it, where the background has not
					if s := look(t, n, img.Layers[0]).State(); s != layer.Ready {
						t.Errorf("the layer is %s", s)
					}
				})
			}
		}
	}
}

// TestTrashThatIsNoDirectory has files and symlinks among the layers' directories and in
// the trash: they are removed.
func TestTrashThatIsNoDirectory(t *testing.T) {
	snapshottest.NeedFanotify(t)
	root := t.TempDir()
	for _, name := range []string{dirs.Layers, dirs.Trash} {
		dir := filepath.Join(root, name)
		err := errors.Join(os.MkdirAll(dir, 0o700), os.WriteFile(filepath.Join(dir, "file"), nil, 0o600),
			os.Symlink("nowhere", filepath.Join(dir, "link")), os.MkdirAll(filepath.Join(dir, "sub", "bootstrap"), 0o700))
		if err != nil {
			t.Fatal(err)
		}
	}
	n := snapshottest.New(t, root)
	t.Cleanup(func() { _ = n.TearDown() })
	if n.Layers.Served() {
		t.Error("keepers would never be ended")
	}
	if err := n.Cleanup(t.Context()); err != nil {
		t.Error(err)
	}
	if left, err := os.ReadDir(filepath.Join(root, dirs.Trash)); err != nil || len(left) > 0 {
		t.Errorf("%v are left, %v", left, err)
	}
}

// TestDeathInRemoval removes one file from a layer's directory, as a daemon leaves it
// that dies while it removes the layer.
func TestDeathInRemoval(t *testing.T) {
	snapshottest.NeedFanotify(t)
	for _, gone := range []string{"blob", "blob.spans", "blob.durable", "bootstrap", "layer.json", "*.index"} {
		t.Run(gone, func(t *testing.T) {
			root := t.TempDir()
			n := snapshottest.New(t, root)
			img := snapshottest.LazyImage(t, n)
			l := look(t, n, img.Layers[0])
			blob, dir := l.Blob(), l.Files().Dir()
			if err := blob.Fill(t.Context(), 0, blob.Size()); err != nil {
				t.Fatal(err)
			}
			if err := errors.Join(blob.Sync(), n.TearDown()); err != nil {
				t.Fatal(err)
			}
			paths, err := filepath.Glob(filepath.Join(dir, gone))
			if err != nil || len(paths) == 0 {
				t.Fatal(paths, err)
			}
			if err := os.Remove(paths[0]); err != nil {
				t.Fatal(err)
			}
			n = snapshottest.New(t, root)
			t.Cleanup(func() { _ = n.TearDown() })
			img.ReadsRight(t, n)
		})
	}
}

// TestMountpointIsAFile starts over a file that has the name of a layer's mountpoint:
// the layer becomes ready, and the next Cleanup removes what no layer has.
func TestMountpointIsAFile(t *testing.T) {
	snapshottest.NeedFanotify(t)
	for what, put := range map[string]func(path string) error{
		"file":    func(path string) error { return os.WriteFile(path, []byte("x"), 0o600) },
		"symlink": func(path string) error { return os.Symlink("nowhere", path) },
	} {
		t.Run(what, func(t *testing.T) {
			root := t.TempDir()
			n := snapshottest.New(t, root)
			img := snapshottest.LazyImage(t, n)
			target := look(t, n, img.Layers[0]).Files().Target()
			if err := errors.Join(n.TearDown(), os.Remove(target), put(target)); err != nil {
				t.Fatal(err)
			}
			n = snapshottest.New(t, root)
			t.Cleanup(func() { _ = n.TearDown() })
			if s := look(t, n, img.Layers[0]).State(); s != layer.Ready {
				t.Errorf("the layer is %s", s)
			}
			img.ReadsRight(t, n)
			if err := put(filepath.Join(root, dirs.Mounts, "of no layer")); err != nil {
				t.Fatal(err)
			}
			if err := n.Cleanup(t.Context()); err != nil {
				t.Error(err)
			}
			if entries, err := os.ReadDir(filepath.Join(root, dirs.Mounts)); err != nil || len(entries) != 1 {
				t.Errorf("%v are left, %v", entries, err)
			}
		})
	}
}
