package hold

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lacuna-snapshotter/lacuna/internal/procs"
	"github.com/lacuna-snapshotter/lacuna/ondemand/hold/socket"
)

func program(dir string) Program {
	return Program{Keeper: []string{"keeper", dir}, Anchor: []string{"anchor", dir}}
}

// TestMain lets the test binary be the keeper that startKeeper starts, and others.
func TestMain(m *testing.M) {
	var err error
	switch {
	case len(os.Args) > 1 && os.Args[1] == "keeper":
		err = RunKeeper()
	case len(os.Args) > 1 && os.Args[1] == "anchor":
		RunAnchor()
	case len(os.Args) > 2 && os.Args[1] == "daemon":
		err = beDaemon(os.Args[2])
	case len(os.Args) > 2 && os.Args[1] == "systemd":
		err = readKept(os.Args[2])
	default:
		os.Exit(m.Run())
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func pipe(t *testing.T) (r, w *os.File) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	return r, w
}

func open(t *testing.T, dir string) (*Holders, map[string]*os.File) {
	t.Helper()
	s, found, err := Adopt(dir, 2, program(dir), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	return s, found
}

func keep(t *testing.T, s *Holders, label string, f *os.File) {
	t.Helper()
	if err := s.Hold(label, int(f.Fd())); err != nil {
		t.Fatal(err)
	}
	f.Close()
}

// processes are the keepers of a directory.
func processes(t *testing.T, dir string) (pids []int) {
	t.Helper()
	return running(t, "keeper", dir)
}

func running(t *testing.T, what, dir string) []int {
	t.Helper()
	pids, err := procs.Find(what, dir)
	if err != nil {
		t.Fatal(err)
	}
	return pids
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("never: " + what)
		}
	}
}

func TestSuccessorGetsWhatWasKept(t *testing.T) {
	dir := t.TempDir()
	if _, err := connect(filepath.Join(dir, "keeper0.sock")); !errors.Is(err, errNone) {
		t.Fatalf("no keeper: %v", err)
	}
	first, found := open(t, dir)
	if found != nil {
		t.Errorf("found %v without a keeper", found)
	}
	if info, err := os.Stat(filepath.Join(dir, "keeper1.sock")); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("socket: %v, %v", info, err)
	}
	r, w := pipe(t)
	other, _ := pipe(t)
	keep(t, first, "r", r)
	keep(t, first, `w "with" spaces`, w)
	keep(t, first, "other", other)
	if err := errors.Join(first.Release("other"), first.Release("never kept"), first.Leave()); err != nil {
		t.Error(err)
	}

	second, found := open(t, dir)
	if len(found) != 2 || found["r"] == nil || found[`w "with" spaces`] == nil {
		t.Fatalf("found %v", found)
	}
	if _, err := found[`w "with" spaces`].WriteString("kept"); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 4)
	if _, err := found["r"].Read(b); err != nil || string(b) != "kept" {
		t.Errorf("%q, %v", b, err)
	}
	if err := second.ReleaseAll(); err != nil {
		t.Error(err)
	}
	if pids := processes(t, dir); len(pids) != 0 {
		t.Errorf("keepers %v are left", pids)
	}
	if left, _ := filepath.Glob(filepath.Join(dir, "*")); len(left) != 0 {
		t.Errorf("%v are left", left)
	}
}

// TestDeadKeeperIsReplaced kills one of two again and again: what is kept is
// never without a holder, and in the end both hold it.
func TestDeadKeeperIsReplaced(t *testing.T) {
	dir := t.TempDir()
	s, _ := open(t, dir)
	r, w := pipe(t)
	keep(t, s, "w", w)
	keep(t, s, "r", r)
	for range 10 {
		pids := processes(t, dir)
		if len(pids) != 2 {
			t.Fatalf("%d keepers", len(pids))
		}
		if err := unix.Kill(pids[0], unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
		eventually(t, "two keepers, another one", func() bool {
			now := processes(t, dir)
			return len(now) == 2 && now[0] != pids[0] && now[1] != pids[0] && s.Keepers() == 2
		})
	}
	if err := s.Leave(); err != nil {
		t.Error(err)
	}
	// Each by itself holds all.
	for i := range 2 {
		k, err := connect(filepath.Join(dir, "keeper"+strconv.Itoa(i)+".sock"))
		if err != nil {
			t.Fatal(err)
		}
		holds(t, k, 2)
		if err := k.end(); err != nil {
			t.Error(err)
		}
	}
}

// holds compares how many descriptors a keeper holds by itself.
func holds(t *testing.T, k *keeper, want int) {
	t.Helper()
	held, err := k.adopt()
	if err != nil || len(held) != want {
		t.Errorf("a keeper holds %v, not %d, %v", held, want, err)
	}
	for _, h := range held {
		h.file.Close()
	}
}

// TestMissingKeeperIsTriedAgain kills a keeper while none can be started: it is told
// to be missing, and is there, with what is held by then, as soon as one can be.
func TestMissingKeeperIsTriedAgain(t *testing.T) {
	dir := t.TempDir()
	s, _ := open(t, dir)
	r, w := pipe(t)
	keep(t, s, "r", r)
	for i := range 2 { // something is in the way, whichever it is
		if err := errors.Join(os.Remove(s.socket(i)), os.MkdirAll(filepath.Join(s.socket(i), "something"), 0o700)); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Kill(processes(t, dir)[0], unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	missing := func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return slices.Contains(s.keepers, nil)
	}
	eventually(t, "a failed start", missing)
	if n := s.Keepers(); n != 1 {
		t.Errorf("%d keepers are alive, of 2 one is missing", n)
	}
	keep(t, s, "w", w)
	for i := range 2 {
		if err := os.Remove(filepath.Join(s.socket(i), "something")); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "a new keeper", func() bool { return s.Keepers() == 2 })
	for i := range 2 {
		s.mu.Lock()
		k := s.keepers[i]
		s.mu.Unlock()
		holds(t, k, 2)
	}
	if err := s.ReleaseAll(); err != nil {
		t.Error(err)
	}
}

// TestKeeperDiesWhileADaemonStarts has a keeper die after the daemon has adopted from it
// and before it is given what another keeper holds. The daemon starts all the same.
func TestKeeperDiesWhileADaemonStarts(t *testing.T) {
	dir := t.TempDir()
	first, _ := open(t, dir)
	r, _ := pipe(t)
	keep(t, first, "r", r)
	if err := first.Leave(); err != nil {
		t.Fatal(err)
	}
	k, err := connect(first.socket(0))
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(k.end(), os.Remove(first.socket(0))); err != nil {
		t.Fatal(err)
	}
	dying, err := socket.Bind("unixpacket", first.socket(0))
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		defer dying.Close()
		conn, err := dying.AcceptUnix()
		if err != nil {
			return
		}
		defer conn.Close()
		_, _ = receive(conn) // cmdAdopt
		_ = send(conn, ansDone, "", -1)
		_, _ = receive(conn)
	}()
	second, found := open(t, dir)
	if len(found) != 1 || found["r"] == nil {
		t.Errorf("found %v", found)
	}
	if n := second.Keepers(); n != 2 {
		t.Errorf("%d keepers are alive", n)
	}
	if err := second.ReleaseAll(); err != nil {
		t.Error(err)
	}
}

// TestStoppedKeeperIsNotLeft has a keeper not answer until it is replaced. When it goes
// on it ends: no daemon would find it.
func TestStoppedKeeperIsNotLeft(t *testing.T) {
	dir := t.TempDir()
	s, _ := open(t, dir)
	r, w := pipe(t)
	keep(t, s, "r", r)
	stopped := stop(t, dir)
	keep(t, s, "w", w)
	eventually(t, "another keeper", func() bool { return s.Keepers() == 2 })
	resume(t, stopped)
	eventually(t, "the end of the replaced keeper", func() bool { return !slices.Contains(processes(t, dir), stopped) })
	if err := s.ReleaseAll(); err != nil {
		t.Error(err)
	}
}

// TestStoppedKeeperIsLeftWithWhatItHolds has a daemon start while a keeper does not
// answer. What only that one holds may be what readers wait on: it does not end.
func TestStoppedKeeperIsLeftWithWhatItHolds(t *testing.T) {
	dir := t.TempDir()
	s, _ := open(t, dir)
	r, w := pipe(t)
	keep(t, s, "w", w)
	stopped := stop(t, dir)
	if err := s.Leave(); err != nil {
		t.Fatal(err)
	}
	for _, pid := range processes(t, dir) {
		if pid != stopped {
			if err := unix.Kill(pid, unix.SIGKILL); err != nil {
				t.Fatal(err)
			}
		}
	}
	next, found := open(t, dir)
	if found != nil {
		t.Errorf("found %v", found)
	}
	if err := next.ReleaseAll(); err != nil {
		t.Error(err)
	}
	resume(t, stopped)
	if err := r.SetReadDeadline(time.Now().Add(time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the other end is not held any more: %v", err)
	}
	if err := unix.Kill(stopped, unix.SIGKILL); err != nil {
		t.Error(err)
	}
}

// stop has a keeper not answer.
func stop(t *testing.T, dir string) (pid int) {
	t.Helper()
	pid = processes(t, dir)[0]
	if err := unix.Kill(pid, unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	return pid
}

func resume(t *testing.T, pid int) {
	t.Helper()
	if err := unix.Kill(pid, unix.SIGCONT); err != nil {
		t.Fatal(err)
	}
}

// TestLeaveWhileAKeeperIsMissing ends a set that waits to try again.
func TestLeaveWhileAKeeperIsMissing(t *testing.T) {
	dir := t.TempDir()
	socket := filepath.Join(dir, "keeper0.sock")
	if err := os.MkdirAll(filepath.Join(socket, "something"), 0o700); err != nil {
		t.Fatal(err)
	}
	s, _ := open(t, dir)
	if n := s.Keepers(); n != 1 {
		t.Errorf("%d keepers are alive, of 2 one is missing", n)
	}
	if err := os.Remove(filepath.Join(socket, "something")); err != nil {
		t.Fatal(err)
	}
	if err := s.ReleaseAll(); err != nil {
		t.Error(err)
	}
}

// TestUmaskIsLeftAlone starts keepers while others make files.
func TestUmaskIsLeftAlone(t *testing.T) {
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "before"), 0o755); err != nil {
		t.Fatal(err)
	}
	before, err := os.Stat(filepath.Join(dir, "before"))
	if err != nil {
		t.Fatal(err)
	}
	stop, done := make(chan struct{}), make(chan error, 1)
	go func() {
		for i := 0; ; i++ {
			select {
			case <-stop:
				done <- nil
				return
			default:
			}
			path := filepath.Join(dir, fmt.Sprint("dir", i))
			if err := os.Mkdir(path, 0o755); err != nil {
				done <- err
				return
			}
			if info, err := os.Stat(path); err != nil || info.Mode() != before.Mode() {
				done <- fmt.Errorf("a directory of another goroutine has %v, and %v before: %w", info.Mode(), before.Mode(), err)
				return
			}
		}
	}()
	for i := range 30 {
		path := filepath.Join(dir, fmt.Sprint("socket", i))
		l, err := socket.Bind("unixpacket", path)
		if err != nil {
			t.Fatal(err)
		}
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("socket: %v, %v", info, err)
		}
		l.Close()
	}
	close(stop)
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestManyDescriptors(t *testing.T) {
	dir := t.TempDir()
	s, _ := open(t, dir)
	const n = 400
	for i := range n {
		r, w := pipe(t)
		w.Close()
		keep(t, s, strconv.Itoa(i), r)
	}
	if err := s.Leave(); err != nil {
		t.Error(err)
	}
	s, found := open(t, dir)
	if len(found) != n {
		t.Errorf("%d of %d came back", len(found), n)
	}
	for _, f := range found {
		f.Close()
	}
	if err := s.Hold(strings.Repeat("x", maxLabel+1), 0); err == nil {
		t.Error("a label of any length was taken")
	}
	if err := s.ReleaseAll(); err != nil {
		t.Error(err)
	}
}

// TestSystemd is a service manager as far as descriptors go.
func TestSystemd(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "notify")
	manager, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer manager.Close()
	t.Setenv("NOTIFY_SOCKET", path)
	s, found := open(t, dir)
	if found != nil {
		t.Errorf("found %v", found)
	}
	r, w := pipe(t)
	t.Cleanup(func() { _ = s.ReleaseAll() })
	keep(t, s, "fanotify group", w)
	keep(t, s, "too:odd", r) // keepers take it
	message := func() (string, int) {
		t.Helper()
		b, oob := make([]byte, 4096), make([]byte, 64)
		if err := manager.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
			t.Fatal(err)
		}
		n, oobn, _, _, err := manager.ReadMsgUnix(b, oob)
		if err != nil {
			t.Fatal(err)
		}
		return string(b[:n]), oobn
	}
	for _, want := range []struct {
		text string
		fds  bool
	}{
		{"FDSTOREREMOVE=1\nFDNAME=fanotify group", false},
		{"FDSTORE=1\nFDPOLL=0\nFDNAME=fanotify group", true},
	} {
		if text, n := message(); text != want.text || n > 0 != want.fds {
			t.Errorf("%q with %d bytes of descriptors, want %q", text, n, want.text)
		}
	}
	if err := s.ReleaseAll(); err != nil {
		t.Error(err)
	}
	if text, _ := message(); text != "FDSTOREREMOVE=1\nFDNAME=fanotify group" {
		t.Errorf("%q", text)
	}
}

// TestSystemdGivesBack starts a process as the manager does, with what its store
// holds.
func TestSystemdGivesBack(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "notify")
	manager, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer manager.Close()
	r, w := pipe(t)
	if _, err := w.WriteString("kept"); err != nil {
		t.Fatal(err)
	}
	w.Close()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	// LISTEN_PID must be the process's own.
	cmd := exec.Command("sh", "-c", `LISTEN_PID=$$ exec "$0" systemd "$1"`, self, dir)
	cmd.Env = append(os.Environ(), "NOTIFY_SOCKET="+path, "LISTEN_FDS=1", "LISTEN_FDNAMES=fanotify group")
	cmd.ExtraFiles = []*os.File{r}
	if out, err := cmd.CombinedOutput(); err != nil || string(out) != "kept" {
		t.Errorf("%q, %v", out, err)
	}
}

// readKept prints what a kept pipe holds, and ends the keepers it has started.
func readKept(dir string) error {
	s, found, err := Adopt(dir, 2, program(dir), slog.New(slog.DiscardHandler))
	if err != nil {
		return err
	}
	b := make([]byte, 4)
	if f := found["fanotify group"]; f != nil {
		if _, err := f.Read(b); err != nil {
			return err
		}
		os.Stdout.Write(b)
	}
	return s.ReleaseAll()
}
