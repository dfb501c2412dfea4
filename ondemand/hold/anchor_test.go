package hold

import (
	"bufio"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lacuna-snapshotter/lacuna/internal/hostcheck"
	"github.com/lacuna-snapshotter/lacuna/internal/kernel"
)

// beDaemon keeps a pipe, anchors it, says so, and waits to be killed.
func beDaemon(dir string) error {
	s, found, err := Adopt(dir, 2, program(dir), slog.New(slog.DiscardHandler))
	if err != nil {
		return err
	}
	if found == nil {
		r, w, err := os.Pipe()
		if err != nil {
			return err
		}
		if _, err := w.WriteString("kept"); err != nil {
			return err
		}
		if err := errors.Join(s.HoldFile("r", r), s.HoldFile("w", w)); err != nil {
			return err
		}
	}
	if err := s.Anchor("r", "never kept", "w"); err != nil {
		return err
	}
	fmt.Println("ready", len(found))
	time.Sleep(time.Hour)
	return nil
}

// startDaemon returns when it is ready, with what it said.
func startDaemon(t *testing.T, dir string) (*exec.Cmd, string) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self, "daemon", dir)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	return cmd, line
}

// needFreezer also sees to it that nothing of the test's stays frozen.
func needFreezer(t *testing.T, dir string) {
	t.Helper()
	hostcheck.Root(t)
	hostcheck.Feature(t, kernel.Freezer)
	f, err := openFreezer(dir)
	if err != nil {
		hostcheck.Missing(t, "the version 1 freezer cgroup: "+err.Error())
	}
	f.close()
	t.Cleanup(func() {
		if err := EndAnchors(dir); err != nil {
			t.Error(err)
		}
	})
}

// TestAnchorOutlivesEverything kills every process that holds something, the
// anchor too, and does it again to the next daemon.
func TestAnchorOutlivesEverything(t *testing.T) {
	dir := t.TempDir()
	needFreezer(t, dir)
	for i, want := range []string{"ready 0\n", "ready 2\n", "ready 2\n"} {
		daemon, said := startDaemon(t, dir)
		if said != want {
			t.Errorf("daemon %d found another number of descriptors: %q", i, said)
		}
		var anchors []int
		eventually(t, "one anchor", func() bool { // the last daemon's is dying yet
			anchors = running(t, "anchor", dir)
			return len(anchors) == 1
		})
		// The daemon first, which would start other keepers.
		for _, pid := range append(append([]int{daemon.Process.Pid}, processes(t, dir)...), anchors...) {
			if err := unix.Kill(pid, unix.SIGKILL); err != nil {
				t.Error(err)
			}
		}
		if err := daemon.Wait(); err == nil {
			t.Error("a killed daemon ended well")
		}
		eventually(t, "the keepers are dead", func() bool { return len(processes(t, dir)) == 0 })
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", anchors[0]))
		if err != nil || !strings.Contains(string(b), "State:\tD") {
			t.Errorf("the anchor is not frozen: %v\n%s", err, b)
		}
	}
	s, found := open(t, dir)
	b := make([]byte, 4)
	if len(found) != 2 {
		t.Fatalf("found %v", found)
	}
	if _, err := found["r"].Read(b); err != nil || string(b) != "kept" {
		t.Errorf("%q, %v", b, err)
	}
	for _, f := range found {
		f.Close()
	}
	if s.Anchored() {
		t.Error("anchored by another's anchor, whose binary may be old")
	}
	if err := s.ReleaseAll(); err != nil {
		t.Error(err)
	}
	// They have let go of everything, and end.
	eventually(t, "no process", func() bool {
		return len(running(t, "anchor", dir)) == 0 && len(running(t, "keeper", dir)) == 0
	})
}

// TestAnchorsOfADeadStart has two, as after a daemon that died before it could
// end the first: the younger one's word counts, and the next ends both.
func TestAnchorsOfADeadStart(t *testing.T) {
	dir := t.TempDir()
	needFreezer(t, dir)
	f, err := openFreezer(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer f.close()
	a := &anchors{f, program(dir).Anchor}
	for generation, text := range []string{"older", "newer"} {
		r, w := pipe(t)
		if _, err := w.WriteString(text); err != nil {
			t.Fatal(err)
		}
		pid, err := a.start(generation+1, shelf[int]{{"r", int(r.Fd())}})
		if err := errors.Join(err, a.add(pid), r.Close(), w.Close()); err != nil {
			t.Fatal(err)
		}
	}
	s, found := open(t, dir)
	b := make([]byte, 5)
	if len(found) != 1 {
		t.Fatalf("found %v", found)
	}
	if _, err := found["r"].Read(b); err != nil || string(b) != "newer" {
		t.Errorf("%q, %v", b, err)
	}
	found["r"].Close()
	if err := s.Anchor("r"); err != nil || !s.Anchored() {
		t.Errorf("%v, %v", err, s.Anchored())
	}
	if all, err := a.list(); err != nil || len(all) != 1 || all[0].generation != 3 {
		t.Errorf("%+v, %v", all, err)
	}
	if err := s.ReleaseAll(); err != nil {
		t.Error(err)
	}
	if _, err := f.hierarchy.Stat(f.name); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the group is left: %v", err)
	}
}

func TestNoAnchorInAPIDNamespace(t *testing.T) {
	hostcheck.Root(t)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	cmd := exec.Command(self, "daemon", dir)
	cmd.SysProcAttr = &unix.SysProcAttr{Cloneflags: unix.CLONE_NEWPID}
	out, err := cmd.CombinedOutput()
	if err == nil || !strings.Contains(string(out), "PID namespace") {
		t.Errorf("%v: %s", err, out)
	}
}
