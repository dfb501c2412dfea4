//go:build vm

// Package guest is what runs in the VM besides the transport's own tests: the
// whole way from a registry to a container.
package guest

import (
	"bufio"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/lacuna-snapshotter/lacuna/integration/harness"
)

func TestEndToEnd(t *testing.T) {
	ctx := t.Context()
	e, err := harness.New("/payload/bin")
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	}()
	if err := os.Symlink("/payload/registry", e.Path("registry")); err != nil {
		t.Fatal(err)
	}
	addr, err := e.StartRegistry()
	if err != nil {
		t.Fatal(err)
	}
	if err := e.AllowHTTP(addr); err != nil {
		t.Fatal(err)
	}
	d, err := e.StartDaemon("transport = \"cachefiles\"\nsettle.enabled = false")
	if err != nil {
		t.Fatal(err)
	}
	c, err := e.StartContainerd("lacuna", "")
	if err != nil {
		t.Fatal(err)
	}
	ref := addr + "/test/numpy:latest"
	if _, err := c.Ctr(ctx, "images", "pull", "--hosts-dir", e.HostsDir(), "--snapshotter", "lacuna", ref); err != nil {
		t.Fatal(err, d.Log())
	}
	out, err := c.RunIn(ctx, "lacuna", ref, "app", "python3", "/app/main.py")
	if err != nil || !strings.Contains(out, "ready") {
		t.Fatalf("%v\n%s\n%s", err, out, d.Log())
	}
	layers, err := e.Lacunactl(ctx, "layers")
	t.Logf("%v\n%s", err, layers)

	// A restart under the mounts.
	if err := d.Stop(); err != nil {
		t.Error(err)
	}
	if d, err = e.StartDaemon("transport = \"cachefiles\"\nsettle.enabled = false"); err != nil {
		t.Fatal(err)
	}
	want := expected(t)
	out, err = c.RunIn(ctx, "lacuna", ref, "tree", "sh", "-c", "find / -xdev -type f -print0 | xargs -0 sha256sum")
	if err != nil {
		t.Fatalf("%v\n%s", err, d.Log())
	}
	same, found := 0, map[string]bool{}
	for line := range strings.Lines(out) {
		sum, path, _ := strings.Cut(strings.TrimSpace(line), "  ")
		path = strings.TrimPrefix(path, "/")
		found[path] = true
		switch want[path] {
		case sum:
			same++
		case "": // the runtime's
		default:
			t.Errorf("%s has SHA-256 %s, the layer's file %s", path, sum, want[path])
		}
	}
	for path := range want {
		if !found[path] {
			t.Errorf("%s is missing", path)
		}
	}
	fmt.Printf("tree: %d files of %d have the right bytes\n", same, len(want))
	if same == 0 || same != len(want) {
		t.Error("tree differs")
	}
}

// expected are the digests of the image's files, computed from the layers.
func expected(t *testing.T) map[string]string {
	t.Helper()
	f, err := os.Open("/payload/expected")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	want := map[string]string{}
	for s := bufio.NewScanner(f); s.Scan(); {
		sum, path, _ := strings.Cut(s.Text(), "  ")
		want[path] = sum
	}
	return want
}
