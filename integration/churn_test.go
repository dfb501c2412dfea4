package integration

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/lacuna-snapshotter/lacuna/integration/harness"
)

// churned is an image that comes and goes, and what its reader prints.
type churned struct{ ref, want string }

// TestKillsUnderChurn kills the daemon again and again while images are pulled, run,
// removed and evicted in two namespaces, and a container reads. Calls that a kill
// interrupts fail; no container sees wrong bytes or an error, and at the end every image
// can be used.
func TestKillsUnderChurn(t *testing.T) {
	for _, transport := range []string{"fanotify", "fuse"} {
		t.Run(transport, func(t *testing.T) { killsUnderChurn(t, transport) })
	}
}

func killsUnderChurn(t *testing.T, transport string) {
	n := newNode(t)
	n.run("transport = \"" + transport + "\"\nbackfill.enabled = false\n[cache]\nmax_bytes = \"5MiB\"\nevery = \"1s\"")
	program, base := n.program(), n.data("base", 4, 600<<10)
	var images []churned
	for _, name := range []string{"x", "y", "z"} {
		own := n.data(name, 3, 400<<10)
		images = append(images, churned{n.push("/test/churn-"+name+":1", true, program, base, own), n.want(base, own)})
	}
	stays := n.data("stays", 20, 200<<10)
	ref := n.push("/test/stays:1", true, program, stays)
	n.pull(ref)
	n.ctr("run", "-d", "--snapshotter", "lacuna", ref, "stays")

	var over atomic.Bool
	var runs, cut atomic.Int64
	var work sync.WaitGroup
	for _, ns := range []string{n.env.Namespace(), n.env.Namespace() + "-b"} {
		random := rand.New(rand.NewPCG(1, uint64(len(ns))))
		work.Go(func() {
			for i := 0; !over.Load(); i++ {
				c := images[random.IntN(len(images))]
				ours := func(args ...string) (string, error) { return n.tryCtr(append([]string{"-n", ns}, args...)...) }
				id := fmt.Sprintf("churn-%d", i)
				_, err := ours("images", "pull", "--hosts-dir", n.env.HostsDir(), "--snapshotter", "lacuna", c.ref)
				if err == nil {
					var out string
					out, err = n.tryOut("-n", ns, "run", "--rm", "--snapshotter", "lacuna", c.ref, id, "/reader", "1")
					if err == nil && out != c.want || strings.Contains(out, "input/output error") {
						t.Errorf("%s in %s: %q, %v; want %q", c.ref, ns, out, err, c.want)
					}
				}
				if runs.Add(1); err != nil {
					cut.Add(1)
					text := err.Error()
					if i := strings.Index(text, "ctr: "); i >= 0 {
						text = text[i:]
					}
					t.Logf("cut off: %.300s", strings.ReplaceAll(text, "\n", " "))
					_, _ = ours("tasks", "rm", "-f", id)
					_, _ = ours("containers", "rm", id)
				}
				if random.IntN(2) == 0 {
					_, _ = ours("images", "rm", "--sync", c.ref)
				}
			}
		})
	}
	for i := range 25 {
		time.Sleep(time.Duration(10+rand.IntN(500)) * time.Millisecond)
		n.daemon.Kill()
		n.restart()
		if i%8 != 0 {
			continue
		}
		if out, err := n.tryOut("tasks", "exec", "--exec-id", fmt.Sprintf("e%d", i), "stays", "/reader", "1"); err != nil || out != n.want(stays) {
			t.Errorf("%q, %v; want %q", out, err, n.want(stays))
		}
	}
	over.Store(true)
	work.Wait()
	t.Logf("%d rounds, %d cut off", runs.Load(), cut.Load())
	n.connected()
	for _, c := range images {
		n.pull(c.ref)
		if out := n.out("run", "--rm", "--snapshotter", "lacuna", c.ref, "last", "/reader", "1"); out != c.want {
			t.Errorf("%s: %q, want %q", c.ref, out, c.want)
		}
	}
	n.ctr("tasks", "rm", "-f", "stays")
	n.ctr("containers", "rm", "stays")
	for _, ns := range []string{n.env.Namespace(), n.env.Namespace() + "-b"} {
		for ref := range strings.FieldsSeq(n.ctr("-n", ns, "images", "list", "-q")) {
			n.ctr("-n", ns, "images", "rm", "--sync", ref)
		}
		for id := range strings.FieldsSeq(n.ctr("-n", ns, "containers", "list", "-q")) {
			_, _ = n.tryCtr("-n", ns, "tasks", "rm", "-f", id)
			n.ctr("-n", ns, "containers", "rm", id)
		}
	}
	n.until("all layers are removed", func() bool { return len(n.layers().Layers) == 0 })
	if err := harness.WaitUnmounted(n.daemon.Root+"/snapshots/m", 0); err != nil {
		t.Error(err)
	}
	for _, name := range []string{"layers", "trash", "new", "snapshots/m"} {
		n.until(name+" is empty", func() bool {
			left, err := os.ReadDir(filepath.Join(n.daemon.Root, name))
			return err == nil && len(left) == 0
		})
	}
}
