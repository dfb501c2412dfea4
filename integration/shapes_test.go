package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/lacuna-snapshotter/lacuna/internal/hostcheck"
)

// TestImagesOfAllShapes pulls and runs unusual images: with an empty layer, with only
// that, without a layer, with as many layers as docker allows; and two images with a
// common base, of which one is removed.
func TestImagesOfAllShapes(t *testing.T) {
	n := newNode(t)
	n.run("backfill.enabled = false")
	program := n.program()

	t.Run("an empty layer", func(t *testing.T) {
		n.t = t
		empty := pack(t, n.env.Path("empty.tar.gz"))
		after := n.data("after", 3, 100<<10)
		ref := n.push("/test/empty:1", true, program, empty, after)
		n.pull(ref)
		out := n.out("run", "--rm", "--snapshotter", "lacuna", ref, "empty", "/reader", "1")
		if want := n.want(after); out != want {
			t.Errorf("%q, want %q", out, want)
		}
		n.lazyLayers(3)
		n.ctr("images", "rm", "--sync", ref)
	})
	t.Run("only an empty layer", func(t *testing.T) {
		n.t = t
		empty := pack(t, n.env.Path("empty.tar.gz"))
		ref := n.push("/test/onlyempty:1", true, empty)
		n.pull(ref)
		at := t.TempDir()
		n.ctr("images", "mount", "--snapshotter", "lacuna", ref, at)
		n.ctr("images", "unmount", "--snapshotter", "lacuna", "--rm", at)
		n.ctr("images", "rm", "--sync", ref)
	})
	t.Run("no layer", func(t *testing.T) {
		n.t = t
		ref := n.push("/test/none:1", false)
		n.pull(ref)
		n.ctr("images", "rm", "--sync", ref)
	})
	t.Run("126 layers", func(t *testing.T) {
		n.t = t
		layers := []string{program}
		for i := range 125 {
			layers = append(layers, n.data(fmt.Sprintf("l%d", i), 1, 1000))
		}
		ref := n.push("/test/many:1", true, layers...)
		n.pull(ref)
		out := n.out("run", "--rm", "--snapshotter", "lacuna", ref, "many", "/reader", "1")
		n.lazyLayers(126)
		if want := n.want(layers...); out != want {
			t.Errorf("%q, want %q", out, want)
		}
		n.ctr("images", "rm", "--sync", ref)
	})
	t.Run("a base in common", func(t *testing.T) {
		n.t = t
		base := n.data("base", 4, 300<<10)
		a := n.push("/test/a:1", true, program, base, n.data("a", 2, 200<<10))
		above := n.data("b", 2, 200<<10)
		b := n.push("/test/b:1", true, program, base, above)
		n.pull(a)
		n.pull(b)
		n.lazyLayers(4)
		n.ctr("images", "rm", "--sync", a)
		n.until("a's layer is removed", func() bool { return len(n.layers().Layers) == 3 })
		out := n.out("run", "--rm", "--snapshotter", "lacuna", b, "common", "/reader", "1")
		if want := n.want(base, above); out != want {
			t.Errorf("%q, want %q", out, want)
		}
		n.ctr("images", "rm", "--sync", b)
	})
	n.t = t
	n.until("all layers are removed", func() bool { return len(n.layers().Layers) == 0 })
}

// lazyLayers fails unless so many layers are there, and none was left to containerd.
func (n *node) lazyLayers(want int) {
	n.t.Helper()
	l := n.layers()
	if len(l.Layers) != want || len(l.Fallbacks) > 0 {
		n.t.Errorf("%d layers, want %d; left to containerd: %+v", len(l.Layers), want, l.Fallbacks)
	}
	for _, layer := range l.Layers {
		if layer.State != "filling" && layer.State != "complete" {
			n.t.Errorf("layer %s is %s: %s", layer.Layer, layer.State, layer.Reason)
		}
	}
}

// TestCtrCommands calls ctr's commands for snapshots and images with a lazy image.
func TestCtrCommands(t *testing.T) {
	hostcheck.Tool(t, "tar")
	n := newNode(t)
	n.run("backfill.enabled = false")
	data := n.data("one", 4, 300<<10)
	ref := n.push("/test/ctr:1", true, n.program(), data)
	n.pull(ref)
	snapshots := func(args ...string) string {
		t.Helper()
		return n.ctr(append([]string{"snapshots", "--snapshotter", "lacuna"}, args...)...)
	}
	list := snapshots("list")
	var top string
	for line := range strings.Lines(list) {
		if f := strings.Fields(line); len(f) == 3 && strings.HasPrefix(f[1], "sha256:") {
			top = f[0]
		}
	}
	if top == "" {
		t.Fatalf("no snapshot has a parent:\n%s", list)
	}
	for _, args := range [][]string{{"usage"}, {"usage", top}, {"info", top}, {"tree"}} {
		if out := snapshots(args...); !strings.Contains(out, strings.TrimPrefix(top, "sha256:")[:12]) {
			t.Errorf("ctr snapshots %v:\n%s", args, out)
		}
	}

	// A view, mounted as ctr says.
	if out := snapshots("view", "looking", top); out != "" {
		t.Log(out)
	}
	at := filepath.Join(t.TempDir(), "at")
	if out := snapshots("mounts", at, "looking"); !strings.Contains(out, "mount -t") {
		t.Errorf("ctr snapshots mounts: %q", out)
	}
	if out := snapshots("diff", top); out == "" {
		t.Error("the topmost layer has no diff")
	}

	at = t.TempDir()
	n.ctr("images", "mount", "--snapshotter", "lacuna", ref, at)
	if _, err := os.ReadFile(filepath.Join(at, "data", "one-3")); err != nil {
		t.Error(err)
	}
	n.ctr("images", "unmount", "--snapshotter", "lacuna", "--rm", at)
	at = t.TempDir()
	n.ctr("images", "mount", "--snapshotter", "lacuna", "--rw", ref, at)
	err := os.WriteFile(filepath.Join(at, "data", "one-3"), nil, 0o644)
	if err != nil {
		t.Error(err)
	}
	n.ctr("images", "unmount", "--snapshotter", "lacuna", "--rm", at)

	if out := n.out("run", "--rm", "--read-only", "--snapshotter", "lacuna", ref, "read-only", "/reader", "1"); out != n.want(data) {
		t.Errorf("read-only: %q, want %q", out, n.want(data))
	}
	// What was not downloaded cannot be exported; what is fetched then can be, and the
	// image stays lazy.
	export := []string{"images", "export", "--platform", "linux/amd64", n.env.Path("export.tar"), ref}
	if out, err := n.tryCtr(export...); err == nil || !strings.Contains(err.Error(), "not found") {
		t.Errorf("export: %q, %v", out, err)
	}
	n.ctr("content", "fetch", "--hosts-dir", n.env.HostsDir(), ref)
	n.ctr(export...)
	n.lazyLayers(2)
}
