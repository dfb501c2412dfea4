package integration

import (
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lacuna-snapshotter/lacuna/integration/harness"
)

// TestReadOnlyRoot makes the daemon's file system read-only while it runs, as ext4 does
// after an error: what is filled can be read, holes give EIO.
func TestReadOnlyRoot(t *testing.T) {
	n := newNode(t)
	n.ownDisk("128M")
	n.run("backfill.enabled = false")
	there, missing := n.data("there", 2, 300<<10), n.data("missing", 2, 300<<10)
	first, second := n.push("/test/there:1", true, n.program(), there), n.push("/test/missing:1", true, n.program(), missing)
	n.pull(first)
	n.pull(second)
	n.ctr("run", "-d", "--snapshotter", "lacuna", first, "first")
	n.ctr("run", "-d", "--snapshotter", "lacuna", second, "second")
	read := func(id, exec string) (string, error) {
		return n.tryOut("tasks", "exec", "--exec-id", exec, id, "/reader", "1")
	}
	if out, err := read("first", "a"); err != nil || out != n.want(there) {
		t.Fatalf("%q, %v", out, err)
	}
	// ext4(5): abort is what it does after an error.
	if out, err := exec.Command("mount", "-o", "remount,abort", n.daemon.Root).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if out, err := read("first", "b"); err != nil || out != n.want(there) {
		t.Errorf("filled: %q, %v", out, err)
	}
	if out, err := read("second", "c"); err == nil || !strings.Contains(out+err.Error(), "input/output error") {
		t.Errorf("holes: %q, %v", out, err)
	}
	if out, err := n.lacunactl("status"); err != nil || !strings.Contains(out, "read-only") {
		t.Errorf("lacunactl status: %v\n%s", err, out)
	}
	if out, err := n.tryCtr("snapshots", "--snapshotter", "lacuna", "usage"); err != nil {
		t.Errorf("usage: %q, %v", out, err)
	}
	if out, err := n.tryOut("run", "--rm", "--snapshotter", "lacuna", first, "third", "/reader", "1"); err == nil {
		t.Errorf("a container was started: %q", out)
	}
	if err := n.daemon.Stop(); err != nil {
		t.Error(err)
	}
	if out := n.tryStart(); !strings.Contains(out, "read-only file system") || strings.Contains(out, "in use") {
		t.Errorf("a start: %s", out)
	}
}

// TestContainerdRestart restarts containerd during pulls and runs, and stops the daemon
// while containerd calls it: a call waits for the next daemon or fails, and can be done
// again.
func TestContainerdRestart(t *testing.T) {
	n := newNode(t)
	n.run("backfill.enabled = false")
	data := n.data("again", 6, 300<<10)
	ref := n.push("/test/again:1", true, n.program(), data)
	n.pull(ref)
	n.ctr("run", "-d", "--snapshotter", "lacuna", ref, "stays")

	// containerd dies while it asks a daemon that is stopped.
	if err := n.daemon.Stop(); err != nil {
		t.Fatal(err)
	}
	type result struct {
		out string
		err error
	}
	done := make(chan result, 1)
	go func() {
		out, err := n.tryOut("run", "--rm", "--snapshotter", "lacuna", ref, "waits", "/reader", "1")
		done <- result{out, err}
	}()
	n.containerd.Kill()
	<-done // whatever it was
	n.restart()
	var err error
	if n.containerd, err = n.env.StartContainerd("lacuna", ""); err != nil {
		t.Fatal(err)
	}
	n.connected()
	if out := n.out("tasks", "exec", "--exec-id", "e", "stays", "/reader", "1"); out != n.want(data) {
		t.Errorf("%q, want %q", out, n.want(data))
	}
	_, _ = n.tryCtr("containers", "rm", "waits")
	if err := n.daemon.Stop(); err != nil {
		t.Fatal(err)
	}
	go func() {
		out, err := n.tryOut("run", "--rm", "--snapshotter", "lacuna", ref, "waits2", "/reader", "1")
		done <- result{out, err}
	}()
	n.restart()
	r := <-done
	for i := 0; r.err != nil && i < 3; i++ { // a connection that containerd had already may have been cut off
		n.connected()
		r.out, r.err = n.tryOut("run", "--rm", "--snapshotter", "lacuna", ref, fmt.Sprint("again-", i), "/reader", "1")
	}
	if r.err != nil || r.out != n.want(data) {
		t.Errorf("%q, %v; want %q", r.out, r.err, n.want(data))
	}

	// A second daemon on the root, and on the sockets, is refused and disturbs nothing.
	out, err := exec.Command(filepath.Join(n.env.Bin, "lacuna-snapshotter"), "--config", n.daemon.Config).CombinedOutput()
	if err == nil || !strings.Contains(string(out), "another lacuna-snapshotter") {
		t.Errorf("a second daemon: %v\n%s", err, out)
	}
	// Two daemons started at once after a kill: one serves.
	n.daemon.Kill()
	second := exec.Command(filepath.Join(n.env.Bin, "lacuna-snapshotter"), "--config", n.daemon.Config)
	if err := second.Start(); err != nil {
		t.Fatal(err)
	}
	third := exec.Command(filepath.Join(n.env.Bin, "lacuna-snapshotter"), "--config", n.daemon.Config)
	if err := third.Start(); err != nil {
		t.Fatal(err)
	}
	for range 600 {
		if _, err := n.tryCtr("snapshots", "--snapshotter", "lacuna", "list"); err == nil {
			break
		}
		time.Sleep(100 * time.Millisecond)
	}
	if err := harness.DropCaches(); err != nil {
		t.Fatal(err)
	}
	if out := n.out("tasks", "exec", "--exec-id", "f", "stays", "/reader", "1"); out != n.want(data) {
		t.Errorf("%q, want %q", out, n.want(data))
	}
	// Two signals, one after the other, are like one.
	for _, c := range []*exec.Cmd{second, third} {
		_ = c.Process.Signal(unix.SIGTERM)
		_ = c.Process.Signal(unix.SIGTERM)
	}
	failed := 0
	for _, c := range []*exec.Cmd{second, third} {
		if err := c.Wait(); err != nil {
			failed++
		}
	}
	if failed > 1 {
		t.Errorf("%d of 2 daemons failed", failed)
	}
	n.restart()
	n.connected()
	if out := n.out("run", "--rm", "--snapshotter", "lacuna", ref, "last", "/reader", "1"); out != n.want(data) {
		t.Errorf("%q, want %q", out, n.want(data))
	}
}
