package integration

import (
	"context"
	"errors"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/lacuna-snapshotter/lacuna/internal/hostcheck"
	"github.com/lacuna-snapshotter/lacuna/internal/procs"
	"github.com/lacuna-snapshotter/lacuna/ondemand/hold"
)

// ownDisk gives the daemon's root a file system of its own.
func (n *node) ownDisk(size string) {
	n.t.Helper()
	hostcheck.Tool(n.t, "mke2fs")
	if err := n.env.OwnDisk(context.Background(), size); err != nil {
		n.t.Fatal(err)
	}
}

// fill takes all room of the daemon's disk, until the result is called.
func (n *node) fill() (empty func()) {
	n.t.Helper()
	remove, err := n.env.FillDisk()
	if err != nil {
		n.t.Fatal(err)
	}
	return func() {
		n.t.Helper()
		if err := remove(); err != nil {
			n.t.Fatal(err)
		}
	}
}

// killHolders kills the daemon and all holders.
func (n *node) killHolders() {
	n.t.Helper()
	n.daemon.Kill()
	pids, err := procs.Find("keeper", n.daemon.Root)
	for _, pid := range pids {
		err = errors.Join(err, unix.Kill(pid, unix.SIGKILL))
	}
	if err := errors.Join(err, hold.EndAnchors(n.daemon.Root)); err != nil {
		n.t.Fatal(err)
	}
}

// TestFullDisk fills the daemon's disk while a container reads, while images are
// pulled and removed, and while daemons start. Everything works again when there is room,
// and images can be removed to make room.
func TestFullDisk(t *testing.T) {
	for _, transport := range []string{"fanotify", "fuse"} {
		t.Run(transport, func(t *testing.T) { fullDisk(t, transport) })
	}
}

func fullDisk(t *testing.T, transport string) {
	n := newNode(t)
	n.ownDisk("128M")
	n.run("backfill.enabled = false\ntransport = \"" + transport + "\"")
	data := n.data("full", 4, 2<<20)
	program := n.program()
	ref := n.push("/test/full:1", true, program, data)
	other := n.push("/test/other:1", true, program, n.data("other", 4, 2<<20))
	n.pull(ref)
	n.ctr("run", "-d", "--snapshotter", "lacuna", ref, "full")
	execs := 0
	read := func() (string, error) {
		execs++
		return n.tryOut("tasks", "exec", "--exec-id", "e"+string(rune('a'+execs)), "full", "/reader", "1")
	}

	empty := n.fill()
	if out, err := read(); err == nil || !strings.Contains(out+err.Error(), "input/output error") {
		t.Errorf("a read without room: %q, %v", out, err)
	}
	// The pull fails, or the layer is left to containerd, whose unpack fails.
	if out, err := n.tryCtr("images", "pull", "--hosts-dir", n.env.HostsDir(), "--snapshotter", "lacuna", other); err == nil {
		t.Errorf("a pull without room: %q", out)
	}
	// A daemon starts on a full disk, however the last one ended.
	if err := n.daemon.Stop(); err != nil {
		t.Error(err)
	}
	n.restart()
	n.daemon.Kill()
	n.restart()
	n.connected()
	if out, err := read(); err == nil || !strings.Contains(out+err.Error(), "input/output error") {
		t.Errorf("a read without room, after a start: %q, %v", out, err)
	}
	empty()
	if out, err := read(); err != nil || out != n.want(data) {
		t.Errorf("with room: %q, %v; want %q", out, err, n.want(data))
	}
	n.pull(other)

	// Also when everything was killed: images can be removed then, which makes room.
	empty = n.fill()
	n.killHolders()
	n.restart()
	n.connected()
	out, err := n.lacunactl("status")
	if err != nil || !strings.Contains(out, "full") {
		t.Errorf("lacunactl status does not name the container: %v\n%s", err, out)
	}
	n.ctr("images", "rm", "--sync", other)
	n.until("other's layer is removed", func() bool { return len(n.layers().Layers) == 2 })
	n.pull(other)
	empty()
	n.ctr("tasks", "rm", "-f", "full")
	n.ctr("containers", "rm", "full")
	if out := n.out("run", "--rm", "--snapshotter", "lacuna", ref, "again", "/reader", "1"); out != n.want(data) {
		t.Errorf("%q, want %q", out, n.want(data))
	}
}

// connected waits until containerd has a connection to a daemon that was started
// again.
func (n *node) connected() {
	n.t.Helper()
	n.until("containerd is connected", func() bool {
		_, err := n.tryCtr("snapshots", "--snapshotter", "lacuna", "list")
		return err == nil
	})
}
