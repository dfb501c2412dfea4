package integration

import (
	"context"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/lacuna-snapshotter/lacuna/integration/harness"
	"github.com/lacuna-snapshotter/lacuna/internal/procs"
)

// tryStart runs the daemon with the configuration of the last one, until it gives up.
func (n *node) tryStart() string {
	n.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute) // a hang guard
	defer cancel()
	cmd := exec.CommandContext(ctx, filepath.Join(n.env.Bin, "lacuna-snapshotter"), "--config", n.daemon.Config)
	cmd.WaitDelay = time.Second // keepers have the pipe too
	out, err := cmd.CombinedOutput()
	if err == nil || ctx.Err() != nil {
		n.t.Fatalf("it did not fail: %v\n%s", err, out)
	}
	return string(out)
}

// TestFailedStartLeavesNoProcess makes starts fail at each stage while nothing is
// mounted: no process is left, and callers are refused instead of kept waiting.
func TestFailedStartLeavesNoProcess(t *testing.T) {
	n := newNode(t)
	n.run("")
	if err := n.daemon.Stop(); err != nil {
		t.Fatal(err)
	}
	root := n.daemon.Root
	for name, spoil := range map[string]func(*testing.T){
		"metadata": func(t *testing.T) {
			replace(t, filepath.Join(root, "metadata.db"), func(path string) error {
				return os.WriteFile(path, []byte(strings.Repeat("no database ", 10000)), 0o600)
			})
		},
		"directories": func(t *testing.T) {
			replace(t, filepath.Join(root, "trash"), func(path string) error { return os.WriteFile(path, nil, 0o600) })
		},
		"socket": func(t *testing.T) {
			replace(t, n.env.Path("run", "status.sock"), func(path string) error { return os.WriteFile(path, nil, 0o600) })
		},
	} {
		t.Run(name, func(t *testing.T) {
			n.t = t
			spoil(t)
			if out := n.tryStart(); !strings.Contains(out, "lacuna-snapshotter: ") {
				t.Errorf("it does not say why:\n%s", out)
			}
			for _, kind := range []string{"keeper", "anchor"} {
				if pids, err := procs.Find(kind, root); err != nil || len(pids) > 0 {
					t.Errorf("%ss are left: %v, %v", kind, pids, err)
				}
			}
			if conn, err := net.Dial("unix", n.daemon.Socket); err == nil {
				conn.Close()
				t.Error("a process holds the socket")
			}
		})
	}
	n.t = t
	n.restart()
}

// replace puts something at a path until the test ends.
func replace(t *testing.T, path string, with func(string) error) {
	t.Helper()
	aside := path + ".aside"
	there := os.Rename(path, aside) == nil
	t.Cleanup(func() {
		if err := os.RemoveAll(path); err != nil {
			t.Error(err)
		}
		if there {
			if err := os.Rename(aside, path); err != nil {
				t.Error(err)
			}
		}
	})
	if err := with(path); err != nil {
		t.Fatal(err)
	}
}

// TestFailedStartKeepsReadersWaiting makes a start fail after the daemon was killed while
// layers were mounted: the keepers stay, and the next start serves.
func TestFailedStartKeepsReadersWaiting(t *testing.T) {
	n := newNode(t)
	n.run("backfill.enabled = false")
	data := n.data("waits", 4, 300<<10)
	ref := n.push("/test/waits:1", true, n.program(), data)
	n.pull(ref)
	n.ctr("run", "-d", "--snapshotter", "lacuna", ref, "waits")
	n.daemon.Kill()
	if err := harness.DropCaches(); err != nil {
		t.Fatal(err)
	}
	for name, spoil := range map[string]string{"metadata": "metadata.db", "directories": "trash"} {
		t.Run(name, func(t *testing.T) {
			n.t = t
			replace(t, filepath.Join(n.daemon.Root, spoil), func(path string) error {
				return os.WriteFile(path, []byte(strings.Repeat("spoilt ", 10000)), 0o600)
			})
			if out := n.tryStart(); !strings.Contains(out, "lacuna-snapshotter: ") {
				t.Errorf("it does not say why:\n%s", out)
			}
			if pids, err := procs.Find("keeper", n.daemon.Root); err != nil || len(pids) != 3 {
				t.Errorf("keepers: %v, %v", pids, err)
			}
		})
	}
	n.t = t
	n.restart()
	n.connected()
	if out := n.out("tasks", "exec", "--exec-id", "e", "waits", "/reader", "1"); out != n.want(data) {
		t.Errorf("%q, want %q", out, n.want(data))
	}
}

// TestReadyWithoutRegistry has the registry answer no request while a
// daemon starts with layers that are not complete: it is ready before any is answered.
func TestReadyWithoutRegistry(t *testing.T) {
	n := newNode(t)
	n.run("backfill.enabled = false")
	layers := []string{n.program()}
	for _, name := range strings.Split("abcdefghijklmnopqrst", "") {
		layers = append(layers, n.data(name, 2, 200<<10))
	}
	ref := n.push("/test/down:1", true, layers...)
	n.pull(ref)
	n.ctr("run", "-d", "--snapshotter", "lacuna", ref, "down")
	for name, end := range map[string]func(){
		"stopped": func() {
			if err := n.daemon.Stop(); err != nil {
				t.Fatal(err)
			}
		},
		"killed": func() { n.daemon.Kill() },
	} {
		t.Run(name, func(t *testing.T) {
			n.t = t
			end()
			well := make(chan struct{})
			n.fails(func(w http.ResponseWriter, r *http.Request) {
				select {
				case <-well:
					n.pass(w, r)
				case <-r.Context().Done():
				}
			})
			n.config = "backfill.enabled = true\nbackfill.quiet = \"0s\""
			began := time.Now()
			n.restart()
			n.ctr("snapshots", "--snapshotter", "lacuna", "usage")
			t.Logf("%d layers, and no registry: the daemon answered containerd after %s", len(layers), time.Since(began).Round(time.Millisecond))
			if l := n.layers(); len(l.Layers) != len(layers) {
				t.Errorf("%d layers", len(l.Layers))
			}
			close(well)
			n.fails(nil)
			if out := n.out("tasks", "exec", "--exec-id", name, "down", "/reader", "1"); out != n.want(layers...) {
				t.Errorf("%q, want %q", out, n.want(layers...))
			}
		})
	}
}
