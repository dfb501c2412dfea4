package integration

import (
	"context"
	"errors"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lacuna-snapshotter/lacuna/integration/harness"
	"github.com/lacuna-snapshotter/lacuna/internal/procs"
)

// TestCompleteLayersNeedNoDaemon kills everything under a container that was started
// before its layers were complete, and has it read all of them.
func TestCompleteLayersNeedNoDaemon(t *testing.T) {
	p := real(t)
	ctx := t.Context()
	sum := []string{"sh", "-c", hashAll}
	if err := p.containerd.Pull(ctx, "overlayfs", p.ref); err != nil {
		t.Fatal(err)
	}
	want, err := p.containerd.RunIn(ctx, "overlayfs", p.ref, "whole", sum...)
	if err != nil {
		t.Fatal(err)
	}
	for name, config := range map[string]string{
		"fanotify":          `transport = "fanotify"`,
		"FUSE through loop": "transport = \"fuse\"\nfuse.loop = true",
	} {
		t.Run(name, func(t *testing.T) {
			e, err := harness.New(p.env.Bin)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				if err := e.Close(); err != nil {
					t.Error(err)
				}
			})
			if err := e.AllowHTTP(p.link.Addr); err != nil {
				t.Fatal(err)
			}
			config += "\nanchor = false\nbackfill.quiet = \"0s\""
			d, err := e.StartDaemon(config + "\nbackfill.enabled = false")
			if err != nil {
				t.Fatal(err)
			}
			c, err := e.StartContainerd("lacuna", "")
			if err != nil {
				t.Fatal(err)
			}
			ctr := func(args ...string) string {
				t.Helper()
				out, err := c.Ctr(ctx, args...)
				if err != nil {
					t.Fatal(err)
				}
				return out
			}
			if err := c.Pull(ctx, "lacuna", p.ref); err != nil {
				t.Fatal(err)
			}
			id := "complete-" + filepath.Base(d.Root)
			ctr("run", "-d", "--snapshotter", "lacuna", p.ref, id, "sleep", "1000")
			t.Cleanup(func() { _, _ = c.Ctr(context.Background(), "tasks", "rm", "-f", id) })
			if completed(d) == len(p.image.Layers) {
				t.Fatal("all layers were complete before the container ran")
			}
			if err := d.Stop(); err != nil {
				t.Fatal(err)
			}
			if d, err = e.StartDaemon(config); err != nil {
				t.Fatal(err)
			}
			for range 600 {
				if completed(d) == len(p.image.Layers) {
					break
				}
				time.Sleep(100 * time.Millisecond)
			}
			if n := completed(d); n != len(p.image.Layers) {
				t.Fatalf("%d of %d layers were completed", n, len(p.image.Layers))
			}
			d.Kill()
			pids, err := procs.Find("keeper", d.Root)
			if err != nil || len(pids) == 0 {
				t.Fatal(pids, err)
			}
			for _, pid := range pids {
				err = errors.Join(err, unix.Kill(pid, unix.SIGKILL))
			}
			if err := errors.Join(err, harness.DropCaches()); err != nil {
				t.Fatal(err)
			}
			if got := ctr(append([]string{"tasks", "exec", "--exec-id", "reader", id}, sum...)...); got != want {
				t.Errorf("%q, want %q", got, want)
			}
		})
	}
}

// completed is how many layers a daemon has released.
func completed(d *harness.Daemon) int { return strings.Count(d.Log(), "layer is complete") }
