package snapshot

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/lacuna-snapshotter/lacuna/ondemand/fanotify"
)

// TestDeathBeforeMountsAreReplaced has everything die that holds the group, and
// then the next daemon, whose group is held, before it has gone over the mounts:
// they are no more to be believed by the one after it.
func TestDeathBeforeMountsAreReplaced(t *testing.T) {
	needFanotify(t)
	root := t.TempDir()
	n := startForTest(t, root)
	img := lazyImage(t, n)
	if _, err := n.Prepare(t.Context(), "container", "chain0"); err != nil {
		t.Fatal(err)
	}
	if err := n.stop(); err != nil { // the last descriptor goes with it
		t.Fatal(err)
	}
	// Somebody reads zeros, and the kernel keeps them.
	mustRun(t, "sh", "-c", "cat $(find "+n.layer(t, img.layers[0]).files.target+" -type f)")

	if err := Abandon(root); err != nil {
		t.Fatal(err)
	}
	group, err := fanotify.NewGroup()
	if err != nil {
		t.Fatal(err)
	}
	held := hold(t, &node{group: group})
	ctx, die := context.WithCancel(t.Context())
	die()
	if _, err := startWith(ctx, root, group, false, testLog(t)); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	if n, err = start(t.Context(), root, held, testLog(t)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = n.tearDown() })
	img.readsRight(t, n)
	if list, err := n.Unserved(t.Context()); err != nil || len(list) != 1 || len(list[0].Snapshots) != 1 {
		t.Errorf("%+v, %v", list, err)
	}

	// And when that is done they are believed again.
	before := mustRun(t, "stat", "-c", "%d", n.mountpoint(t, img.layers[0]))
	held = hold(t, n)
	if err := n.stop(); err != nil {
		t.Fatal(err)
	}
	if n, err = start(t.Context(), root, held, testLog(t)); err != nil {
		t.Fatal(err)
	}
	if after := mustRun(t, "stat", "-c", "%d", n.mountpoint(t, img.layers[0])); string(after) != string(before) {
		t.Error("a mount that was served is replaced")
	}
}

// TestUnservedListIsNotAll has a start not write, or not read, the list of layers that
// were not served: it serves all the same, and notes it when it can.
func TestUnservedListIsNotAll(t *testing.T) {
	needFanotify(t)
	for name, damage := range map[string]func(path string) error{
		"cannot be written": func(path string) error { return os.MkdirAll(filepath.Join(path, "sub"), 0o700) },
		"is damaged":        func(path string) error { return os.WriteFile(path, []byte(`[{"layer":`), 0o600) },
	} {
		t.Run(name, func(t *testing.T) {
			root := t.TempDir()
			n := startForTest(t, root)
			img := lazyImage(t, n)
			if _, err := n.Prepare(t.Context(), "container", "chain0"); err != nil {
				t.Fatal(err)
			}
			if err := errors.Join(n.stop(), damage(filepath.Join(root, unservedFile))); err != nil {
				t.Fatal(err)
			}
			n = startForTest(t, root)
			t.Cleanup(func() { _ = n.tearDown() })
			img.readsRight(t, n)
			if err := os.RemoveAll(filepath.Join(root, unservedFile)); err != nil {
				t.Fatal(err)
			}
			if list, err := n.Unserved(t.Context()); name == "cannot be written" && (err != nil || len(list) != 1) {
				t.Errorf("%+v, %v", list, err)
			}
		})
	}
}
