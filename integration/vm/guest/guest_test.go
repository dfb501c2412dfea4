//go:build vm

// Package guest has the tests that run in the VM besides those of the transports: from a
// registry to a container.
package guest

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/lacuna-snapshotter/lacuna/integration/harness"
)

// registry starts one with the image that the host has pushed, and returns its
// address.
func registry(t *testing.T) (*harness.Env, string) {
	t.Helper()
	e, err := harness.New("/payload/bin")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	})
	if err := os.Symlink("/payload/registry", e.Path("registry")); err != nil {
		t.Fatal(err)
	}
	addr, err := e.StartRegistry()
	if err != nil {
		t.Fatal(err)
	}
	return e, addr
}

func TestEndToEnd(t *testing.T) {
	ctx := t.Context()
	e, addr := registry(t)
	if err := e.AllowHTTP(addr); err != nil {
		t.Fatal(err)
	}
	d, err := e.StartDaemon("transport = \"cachefiles\"\nbackfill.enabled = false")
	if err != nil {
		t.Fatal(err)
	}
	c, err := e.StartContainerd("lacuna", "")
	if err != nil {
		t.Fatal(err)
	}
	ref := addr + "/test/numpy:latest"
	if err := c.Pull(ctx, "lacuna", ref); err != nil {
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
	// From here on with backfill: one miss at a time would take an emulated machine
	// minutes.
	if d, err = e.StartDaemon("transport = \"cachefiles\"\nbackfill.quiet = \"0s\""); err != nil {
		t.Fatal(err)
	}
	if err := c.Reconnect(ctx); err != nil {
		t.Fatalf("%v\n%s", err, d.Log())
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

// TestStandalone serves an image's layers, then a directory of EROFS images,
// without containerd, and mounts what it is told to.
func TestStandalone(t *testing.T) {
	e, addr := registry(t)
	image, err := os.ReadFile("/payload/app.py")
	if err != nil {
		t.Fatal(err)
	}
	want := expected(t)
	serve(t, []string{"--dir", e.Path("one"), "--image", addr + "/test/numpy:latest", "--plain-http"}, 3, func(target string, n int) {
		path := []string{"usr/bin/dash", "usr/bin/python3.11", "app/main.py"}[n]
		out, err := exec.Command("sha256sum", filepath.Join(target, path)).Output()
		if err != nil || !strings.HasPrefix(string(out), want[path]) {
			t.Errorf("%s: %s, want %s: %v", path, out, want[path], err)
		}
	})
	serve(t, []string{"--dir", e.Path("two"), "--files", "/payload/erofs"}, 1, func(target string, _ int) {
		got, err := exec.Command("cat", filepath.Join(target, "main.py")).Output()
		if err != nil || !bytes.Equal(got, image) {
			t.Errorf("%d bytes of %d: %v", len(got), len(image), err)
		}
	})
}

// serve runs serve-cachefiles, follows each mount command that it prints, and
// ends it.
func serve(t *testing.T, args []string, mounts int, use func(target string, n int)) {
	t.Helper()
	cmd := exec.Command("lacuna-snapshotter", append([]string{"serve-cachefiles"}, args...)...)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	s := bufio.NewScanner(out)
	if !s.Scan() || s.Text() != "serving; mount with" {
		t.Fatalf("%q: %v", s.Text(), cmd.Wait())
	}
	for n := range mounts {
		if !s.Scan() {
			t.Fatal("a mount command is missing")
		}
		target := t.TempDir()
		command := strings.Replace(strings.TrimSpace(s.Text()), "/mnt", target, 1)
		if out, err := exec.Command("sh", "-c", command).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", command, err, out)
		}
		use(target, n)
		if err := exec.Command("umount", target).Run(); err != nil {
			t.Error("umount:", err)
		}
	}
	if err := cmd.Process.Signal(os.Interrupt); err != nil {
		t.Error(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Error("serve-cachefiles:", err)
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
