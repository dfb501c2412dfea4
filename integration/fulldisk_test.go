package integration

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/lacuna-snapshotter/lacuna/integration/harness"
	"github.com/lacuna-snapshotter/lacuna/internal/hostcheck"
	"github.com/lacuna-snapshotter/lacuna/internal/procs"
	"github.com/lacuna-snapshotter/lacuna/ondemand/keeper"
)

// ownDisk gives the daemon's root a file system of its own.
func (n *node) ownDisk(size string) {
	n.t.Helper()
	hostcheck.Tool(n.t, "mke2fs")
	image, dir := n.env.Path("disk"), n.env.Path(harness.DaemonRoot)
	if err := os.Mkdir(dir, 0o711); err != nil {
		n.t.Fatal(err)
	}
	for _, args := range [][]string{
		{"truncate", "-s", size, image}, {"mke2fs", "-q", "-t", "ext4", "-m", "0", image}, {"mount", "-o", "loop", image, dir},
	} {
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			n.t.Fatalf("%v: %v\n%s", args, err, out)
		}
	}
}

// fill takes all room of the daemon's disk, until the result is called.
func (n *node) fill() (empty func()) {
	n.t.Helper()
	path := filepath.Join(n.env.Path(harness.DaemonRoot), "balloon")
	balloon, err := os.Create(path)
	if err != nil {
		n.t.Fatal(err)
	}
	defer balloon.Close()
	at := int64(0)
	for step := int64(1 << 30); step >= 1024; {
		switch err := unix.Fallocate(int(balloon.Fd()), 0, at, step); {
		case err == nil:
			at += step
		case errors.Is(err, unix.ENOSPC):
			step /= 2
		default:
			n.t.Fatal(err)
		}
	}
	return func() {
		n.t.Helper()
		if err := os.Remove(path); err != nil {
			n.t.Fatal(err)
		}
	}
}

// killHolders kills everything that serves, and all that holds for it.
func (n *node) killHolders() {
	n.t.Helper()
	n.daemon.Kill()
	pids, err := procs.Find("keeper", n.daemon.Root)
	for _, pid := range pids {
		err = errors.Join(err, unix.Kill(pid, unix.SIGKILL))
	}
	if err := errors.Join(err, keeper.EndAnchors(n.daemon.Root)); err != nil {
		n.t.Fatal(err)
	}
}

// TestFullDisk fills the daemon's disk while a container reads, while images are
// pulled and removed, and while daemons start. Everything mends by itself: with room,
// or with what is removed to make it.
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
	// A pull fails, or is left to containerd whose unpack fails.
	if out, err := n.tryCtr("images", "pull", "--hosts-dir", n.env.HostsDir(), "--snapshotter", "lacuna", other); err == nil {
		t.Errorf("a pull without room: %q", out)
	}
	// A daemon starts on a full disk, in whatever way the last one ended.
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

	// When everything was killed, too: images can be removed then, which makes room.
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
