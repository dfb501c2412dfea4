package snapshot

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/lacuna-snapshotter/lacuna/erofs"
	"github.com/lacuna-snapshotter/lacuna/fetcher/layertest"
	"github.com/lacuna-snapshotter/lacuna/internal/descriptor"
)

// hold keeps a node's group over its end, as a keeper does.
func hold(t *testing.T, n *node) *os.File {
	t.Helper()
	var group *os.File
	err := descriptor.Use(n.group, func(fd int) error {
		dup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
		group = os.NewFile(uintptr(dup), "group")
		return err
	})
	if err != nil {
		t.Fatal("the group was not kept", err)
	}
	return group
}

// TestThousandLayers starts over 1,000 layers, first with all of them to be
// mounted, as after a reboot, then over their mounts, and says how long each
// took.
func TestThousandLayers(t *testing.T) {
	needFanotify(t)
	root := t.TempDir()
	const layers = 1000
	tree, err := erofs.ReadTar(t.Context(), bytes.NewReader(layertest.Tar(t, 30, 1)), erofs.Options{})
	if err != nil {
		t.Fatal(err)
	}
	bootstrap, err := tree.Encode()
	if err != nil {
		t.Fatal(err)
	}
	for i := range layers {
		d := digest.FromString(fmt.Sprint(i))
		s := layerState{Version: stateVersion, Layer: d, Bootstrap: digest.FromBytes(bootstrap), Mountpoint: d.Encoded()[:12], Ref: "registry.example/app:1", BlobSize: tree.BlobSize, SpanSize: 64 << 10}
		dir := s.at(root).dir
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		state, err := json.Marshal(s)
		if err != nil {
			t.Fatal(err)
		}
		for name, b := range map[string][]byte{"bootstrap": bootstrap, "layer.json": state, "sha256-" + d.Encoded() + ".index": nil} {
			if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	mountIDs := func() map[string]string {
		b, err := os.ReadFile("/proc/self/mountinfo")
		if err != nil {
			t.Fatal(err)
		}
		ids := map[string]string{}
		for line := range strings.Lines(string(b)) {
			if f := strings.Fields(line); len(f) > 4 && strings.HasPrefix(f[4], root+"/snapshots/m/") {
				ids[f[4]] = f[0]
			}
		}
		return ids
	}

	began := time.Now()
	n := startForTest(t, root)
	cold := time.Since(began)
	before := mountIDs()
	if len(before) != layers {
		t.Fatalf("%d mounts", len(before))
	}
	group := hold(t, n)
	if err := n.stop(); err != nil {
		t.Fatal(err)
	}
	began = time.Now()
	if n, err = start(t.Context(), root, group, testLog(t)); err != nil {
		t.Fatal(err)
	}
	warm := time.Since(began)
	t.Cleanup(func() {
		if err := n.tearDown(); err != nil {
			t.Error(err)
		}
	})
	after := mountIDs()
	for target, id := range before {
		if after[target] != id {
			t.Fatalf("%s was mounted anew", target)
		}
	}
	t.Logf("start with %d layers: %s with all to be mounted, %s over their mounts", layers, cold.Round(time.Millisecond), warm.Round(time.Millisecond))
}
