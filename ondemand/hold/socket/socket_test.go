package socket

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/lacuna-snapshotter/lacuna/internal/descriptor"
	"github.com/lacuna-snapshotter/lacuna/ondemand/hold/lock"
)

// holding holds duplicates, as the holders do.
type holding struct{ held map[string]*os.File }

func (k *holding) HoldFile(label string, c syscall.Conn) error {
	return descriptor.Use(c, func(fd int) error {
		own, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			return err
		}
		if old := k.held[label]; old != nil {
			old.Close()
		}
		if k.held == nil {
			k.held = map[string]*os.File{}
		}
		k.held[label] = os.NewFile(uintptr(own), label)
		return nil
	})
}

func (k *holding) Release(label string) error {
	delete(k.held, label)
	return nil
}

// take is what the next daemon adopts.
func (k *holding) take(t *testing.T, path string) *os.File {
	t.Helper()
	f := k.held[Label(path)]
	if f == nil {
		t.Fatalf("nothing is held of %s", path)
	}
	delete(k.held, Label(path))
	return f
}

func serve(t *testing.T, path, root string, k *holding, held *os.File) *Listener {
	t.Helper()
	s, err := open(path, root, k, held)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { die(s) })
	return s
}

// die is what the end of a daemon does to its socket.
func die(s *Listener) {
	s.Close()
	s.lock.Unlock()
}

func dial(t *testing.T, path string) net.Conn {
	t.Helper()
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// reaches fails the test unless who connects to the path is accepted by s.
func reaches(t *testing.T, s *Listener) {
	t.Helper()
	c := dial(t, s.path)
	if _, err := c.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	for {
		got, err := s.Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer got.Close()
		b := make([]byte, 1)
		if n, _ := got.Read(b); n == 1 {
			return
		} // else somebody who only looked whether anybody answers
	}
}

func TestSecondDaemonLeavesSocketAlone(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "s.sock")
	first := serve(t, path, "/first", &holding{}, nil)
	_, err := open(path, "/second", &holding{}, nil)
	if !errors.Is(err, lock.ErrLocked) || !strings.Contains(err.Error(), fmt.Sprintf("process %d with root /first", os.Getpid())) {
		t.Errorf("second daemon: %v", err)
	}
	reaches(t, first)
}

func TestSecondDaemonLeavesHeldSocketAlone(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s.sock")
	k := &holding{}
	die(serve(t, path, "/first", k, nil))
	waiting := dial(t, path)
	if _, err := open(path, "/second", &holding{}, nil); err == nil || !strings.Contains(err.Error(), "/first") {
		t.Fatalf("the held socket was adopted by another root's daemon: %v", err)
	}
	next := serve(t, path, "/first", k, k.take(t, path))
	if _, err := waiting.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	for {
		got, err := next.Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer got.Close()
		if n, _ := got.Read(make([]byte, 1)); n == 1 {
			break
		}
	}
	// What a dead daemon left behind for nobody is for anybody.
	die(next)
	die(serve(t, path, "/third", &holding{}, nil))
}

// TestFullQueueIsTaken has more connect than the queue holds while no daemon is
// there: the socket is held all the same.
func TestFullQueueIsTaken(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s.sock")
	k := &holding{}
	first := serve(t, path, "/r", k, nil)
	if err := descriptor.Use(first.l, func(fd int) error { return unix.Listen(fd, 0) }); err != nil {
		t.Fatal(err)
	}
	die(first)
	held := k.take(t, path)
	n := 0
	for ; n < 100; n++ {
		c, err := net.Dial("unix", path)
		if err != nil {
			break
		}
		defer c.Close()
	}
	if n == 100 {
		t.Fatal("the queue is not full")
	}
	at := first.name
	if next := serve(t, path, "/r", k, held); next.name != at {
		t.Error("the socket that clients wait at was replaced")
	}
}

func TestReplacedSocketIsNotTaken(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s.sock")
	k := &holding{}
	die(serve(t, path, "/r", k, nil))
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	other, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	if _, err := open(path, "/r", k, k.take(t, path)); err == nil || !strings.Contains(err.Error(), "another program") {
		t.Errorf("another program's socket was taken: %v", err)
	}
	if got, err := net.Dial("unix", path); err != nil {
		t.Errorf("the other program's socket is gone: %v", err)
	} else {
		got.Close()
	}
}

func TestFileAtSocketsPathStays(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s.sock")
	if err := os.WriteFile(path, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := open(path, "/r", &holding{}, nil); err == nil || !strings.Contains(err.Error(), "no socket") {
		t.Error(err)
	}
	if b, err := os.ReadFile(path); err != nil || string(b) != "precious" {
		t.Errorf("the file is now %q, %v", b, err)
	}
}

// TestRemovedSocketIsCreatedAgain removes a living daemon's socket, then its directory.
func TestRemovedSocketIsCreatedAgain(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "run")
	path := filepath.Join(dir, "s.sock")
	k := &holding{}
	s := serve(t, path, "/r", k, nil)
	log := slog.New(slog.DiscardHandler)
	for _, remove := range []string{path, dir} {
		accepted := make(chan error)
		go func() { // it waits on the old one meanwhile
			c, err := s.Accept()
			if err == nil {
				c.Close()
			}
			accepted <- err
		}()
		if err := os.RemoveAll(remove); err != nil {
			t.Fatal(err)
		}
		s.look(log)
		dial(t, path)
		if err := <-accepted; err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	other, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	s.look(log)
	if !s.lost {
		t.Error("a replaced socket was not noticed")
	}
	if err := s.remove(); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(path); err != nil {
		t.Errorf("another program's socket was removed: %v", err)
	}
	other.Close()
	s.look(log)
	reaches(t, s)
	// The new one is held.
	die(s)
	reaches(t, serve(t, path, "/r", k, k.take(t, path)))
}

// TestSocketsAreRoots has sockets made while other files are: the sockets have mode
// 0600 whenever anybody looks, whatever the umask is, and the files what they
// were made with.
func TestSocketsAreRoots(t *testing.T) {
	dir := t.TempDir()
	old := unix.Umask(0)
	defer unix.Umask(old)
	path := filepath.Join(dir, "s.sock")
	done := make(chan struct{})
	var others sync.WaitGroup
	others.Add(2)
	go func() {
		defer others.Done()
		for i := 0; ; i++ {
			select {
			case <-done:
				return
			default:
			}
			name := filepath.Join(dir, fmt.Sprint("f", i))
			if err := os.Mkdir(name, 0o755); err != nil {
				t.Error(err)
				return
			}
			if info, err := os.Stat(name); err != nil || info.Mode().Perm() != 0o755 {
				t.Errorf("a directory made meanwhile: %v %v", info.Mode(), err)
				return
			}
			os.Remove(name)
		}
	}()
	go func() {
		defer others.Done()
		for {
			select {
			case <-done:
				return
			default:
			}
			if info, err := os.Lstat(path); err == nil && info.Mode().Perm() != 0o600 {
				t.Errorf("the socket has mode %v", info.Mode())
				return
			}
		}
	}()
	for range 300 {
		s, err := open(path, "/r", &holding{}, nil)
		if err != nil {
			t.Error(err)
			break
		}
		die(s)
	}
	close(done)
	others.Wait()
}
