package integration

import (
	"net/http"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// TestLacunactlWithoutDaemon calls each command while the daemon is stopped by SIGSTOP,
// and without a daemon: each ends, and its message says what to do.
func TestLacunactlWithoutDaemon(t *testing.T) {
	n := newNode(t)
	n.run("backfill.enabled = false")
	ref := n.push("/test/ctl:1", true, n.program(), n.data("ctl", 2, 200<<10))
	n.pull(ref)
	n.ctr("run", "-d", "--snapshotter", "lacuna", ref, "ctl")
	asks := [][]string{{"status"}, {"status", "--json"}, {"layers"}, {"layers", "--json"}}
	others := [][]string{{"check-config"}, {"index", "list"}, {"index", "inspect", ref}, {"index", "create", ref}}
	check := func(when, why string) {
		t.Helper()
		var work sync.WaitGroup
		for _, args := range asks {
			work.Go(func() {
				if out, err := n.lacunactl(args...); err == nil || !strings.Contains(err.Error(), why) {
					t.Errorf("%s, lacunactl %v: %q %v", when, args, out, err)
				}
			})
		}
		for _, args := range others {
			work.Go(func() {
				if out, err := n.lacunactl(args...); err != nil {
					t.Errorf("%s, lacunactl %v: %q %v", when, args, out, err)
				}
			})
		}
		work.Wait()
	}
	if err := unix.Kill(n.daemon.PID(), unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	check("stopped", "connected, but no daemon answers")
	if err := unix.Kill(n.daemon.PID(), unix.SIGCONT); err != nil {
		t.Fatal(err)
	}
	if _, err := n.lacunactl("status"); err != nil {
		t.Error(err)
	}
	n.ctr("tasks", "rm", "-f", "ctl")
	n.ctr("containers", "rm", "ctl")
	n.ctr("images", "rm", "--sync", ref)
	n.until("layers are removed", func() bool { return len(n.layers().Layers) == 0 })
	if err := n.daemon.Stop(); err != nil {
		t.Fatal(err)
	}
	check("gone", "no daemon listens on the socket")
}

// TestLayersThatCannotBeFetched has the registry refuse ranges of layers, as if the daemon
// had no credentials: the layers are left to containerd, with the reason.
func TestLayersThatCannotBeFetched(t *testing.T) {
	n := newNode(t)
	n.run("backfill.enabled = false")
	data := n.data("refused", 2, 200<<10)
	ref := n.push("/test/refused:1", true, n.program(), data)
	layers := map[string]bool{}
	n.fails(func(w http.ResponseWriter, r *http.Request) {
		if strings.Contains(r.URL.Path, "/blobs/") && r.Header.Get("Range") != "" && strings.HasPrefix(r.UserAgent(), "lacuna/") {
			w.Header().Set("WWW-Authenticate", `Basic realm="registry"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		n.pass(w, r)
	})
	n.pull(ref)
	if out := n.out("run", "--rm", "--snapshotter", "lacuna", ref, "refused", "/reader", "1"); out != n.want(data) {
		t.Errorf("%q, want %q", out, n.want(data))
	}
	l := n.layers()
	for _, f := range l.Fallbacks {
		layers[f.Layer.String()] = true
		if !strings.Contains(f.Reason, "401") {
			t.Errorf("no 401 in %q", f.Reason)
		}
	}
	if len(layers) != 2 || len(l.Layers) != 0 {
		t.Errorf("%+v", l)
	}
	out, err := n.lacunactl("layers")
	if err != nil || strings.Count(out, "401") < 2 {
		t.Errorf("lacunactl layers: %v\n%s", err, out)
	}
}
