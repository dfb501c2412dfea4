package snapshot

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
)

// TestHalfDirectory starts over the directory of a layer with holes from which
// something is missing, or in which something is not a file: the layer is made
// whole by itself, also below mounts that go on.
func TestHalfDirectory(t *testing.T) {
	needFanotify(t)
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
					n := startForTest(t, root)
					img := lazyImage(t, n)
					layer := n.layer(t, img.layers[0])
					if err := errors.Join(layer.serving.blob.Fill(t.Context(), 0, 1), layer.serving.blob.Sync()); err != nil {
						t.Fatal(err)
					}
					end, group := n.tearDown, (*os.File)(nil)
					if mounts == "alive" {
						end, group = n.stop, hold(t, n)
					}
					if err := end(); err != nil {
						t.Fatal(err)
					}
					paths, err := filepath.Glob(layer.files.path(name))
					if err != nil || len(paths) != 1 {
						t.Fatal(paths, err)
					}
					if err := damage(paths[0]); err != nil {
						t.Fatal(err)
					}
					if n, err = start(t.Context(), root, group, testLog(t)); err != nil {
						t.Fatal(err)
					}
					t.Cleanup(func() { _ = n.tearDown() })
					img.readsRight(t, n) // a container's start makes it whole, if the background has not
					if s := n.layer(t, img.layers[0]).state; s != Ready {
						t.Errorf("the layer is %s", s)
					}
				})
			}
		}
	}
}

// TestTrashThatIsNoDirectory: what is no directory among the layers' goes as well,
// and keeps nothing up.
func TestTrashThatIsNoDirectory(t *testing.T) {
	needFanotify(t)
	root := t.TempDir()
	for _, name := range []string{layersDir, trashDir} {
		dir := filepath.Join(root, name)
		err := errors.Join(os.MkdirAll(dir, 0o700), os.WriteFile(filepath.Join(dir, "file"), nil, 0o600),
			os.Symlink("nowhere", filepath.Join(dir, "link")), os.MkdirAll(filepath.Join(dir, "sub", "bootstrap"), 0o700))
		if err != nil {
			t.Fatal(err)
		}
	}
	n := startForTest(t, root)
	t.Cleanup(func() { _ = n.tearDown() })
	if n.layers.Served() {
		t.Error("keepers would never be ended")
	}
	if err := n.Cleanup(t.Context()); err != nil {
		t.Error(err)
	}
	if left, err := os.ReadDir(filepath.Join(root, trashDir)); err != nil || len(left) > 0 {
		t.Errorf("%v are left, %v", left, err)
	}
}
