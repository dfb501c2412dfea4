package metamorphic

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lacuna-snapshotter/lacuna/internal/hostcheck"
	"github.com/lacuna-snapshotter/lacuna/internal/kernel"
	"github.com/lacuna-snapshotter/lacuna/ondemand/fanotify"
)

var (
	firstSeed   = flag.Uint64("seed", 1, "seed of the first sequence; the next has the next")
	sequences   = flag.Int("sequences", 60, "how many")
	workers     = flag.Int("workers", 2, "how many at once")
	flavour     = flag.String("flavour", "", "what happens to them: calm, delay, fail, kill, power or reboot; by seed where empty")
	namespaces  = flag.Int("namespaces", 2, "containerd's, 1 or 2")
	tolerate    = flag.Int("tolerate", 0, "failed sequences before the run ends")
	startTidies = flag.Bool("start-tidies", false, "bear what failed system calls have left over, where the next start of the node removes it")
	traces      = flag.Bool("traces", false, "print what every sequence did, not only of those that failed")
	mend        = flag.Duration("mend", 10*time.Second, "how long a state may take to mend itself after faults")
	limit       = flag.Duration("limit", time.Hour, "no new sequence is begun after this time")
)

// TestMain is the driver, or what the driver started.
func TestMain(m *testing.M) {
	var err error
	switch os.Getenv(roleVariable) {
	case "node":
		err = serveNode()
	case "reader":
		err = serveReader()
	case "driver":
		os.Unsetenv(roleVariable)
		os.Exit(m.Run())
	default:
		if os.Geteuid() != 0 {
			os.Exit(m.Run()) // it says what it needs
		}
		err = inOwnNamespace()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// inOwnNamespace runs the driver where its mounts end with it.
func inOwnNamespace() error {
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), roleVariable+"=driver")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &unix.SysProcAttr{Unshareflags: unix.CLONE_NEWNS, Pdeathsig: unix.SIGKILL}
	err := cmd.Run()
	if cmd.ProcessState != nil && cmd.ProcessState.ExitCode() > 0 {
		os.Exit(cmd.ProcessState.ExitCode())
	}
	return err
}

// newWorkers makes the disks.
func newWorkers(t *testing.T, n int) (list []*worker) {
	t.Helper()
	hostcheck.Root(t)
	hostcheck.Tool(t, "mke2fs")
	dir, err := os.MkdirTemp("/dev/shm", "lacuna-metamorphic-*")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if theLayers == nil {
		theLayers = makeLayers(t, t.TempDir())
	}
	for i := range n {
		w := &worker{dir: fmt.Sprintf("%s/%d", dir, i)}
		if err := os.Mkdir(w.dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if w.disk, err = newDisk(w.dir+"/disk", w.dir+"/d", 256<<20); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if w.child != nil {
				w.child.kill()
			}
			if w.reader != nil {
				w.reader.kill()
			}
			if err := unix.Unmount(w.disk.dir, unix.MNT_DETACH); err != nil {
				t.Error(err)
			}
		})
		list = append(list, w)
	}
	hostcheck.Feature(t, kernel.PreContent)
	if err := fanotify.Probe(list[0].disk.dir); err != nil {
		hostcheck.Missing(t, "a file system with pre-content events: "+err.Error())
	}
	return list
}

// do runs one sequence to its end and returns what failed.
func (w *worker) do(t *testing.T, seed uint64, flavour string, run func(*sequence)) (*sequence, []failure) {
	sc := &scope{TB: t}
	defer sc.end()
	s, err := w.newSequence(sc, seed, flavour)
	if err != nil {
		s.fail(wrongState, "set-up: %v", err)
	} else {
		run(s)
	}
	log, _ := os.ReadFile(s.dir + "/log")
	if err := s.end(); err != nil {
		s.fail(leftovers, "%v", err)
	}
	if *traces && len(s.failures) == 0 {
		t.Log(strings.Join(s.trace, "\n"))
	}
	if len(s.failures) > 0 {
		const most = 6000
		s.note("log of the node, its end:\n%s", log[max(0, len(log)-most):])
	}
	return s, s.failures
}

// report prints the trace of a failed sequence, and how to run it again.
func (s *sequence) report(t *testing.T, again string) {
	t.Errorf("%s\nfailed: %s: %s\nagain: go test ./integration/metamorphic -workers 1 -namespaces %d %s",
		strings.Join(s.trace, "\n"), s.failures[0].kind, s.failures[0].text, *namespaces, again)
}

// TestSequences runs random sequences.
func TestSequences(t *testing.T) {
	var next, ran, failed atomic.Int64
	var mu sync.Mutex
	flavours, kinds := map[string]int{}, map[string]int{}
	began := time.Now()
	var wg sync.WaitGroup
	for _, w := range newWorkers(t, *workers) {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for {
				n := next.Add(1) - 1
				if n >= int64(*sequences) || time.Since(began) > *limit || failed.Load() > int64(*tolerate) {
					return
				}
				s, failures := w.do(t, *firstSeed+uint64(n), *flavour, (*sequence).run)
				ran.Add(1)
				mu.Lock()
				flavours[s.flavour]++
				if len(failures) > 0 {
					failed.Add(1)
					kinds[failures[0].kind]++
					s.report(t, fmt.Sprintf("-run TestSequences -seed %d -sequences 1 -flavour %q", s.seed, s.flavour))
				}
				mu.Unlock()
			}
		}()
	}
	wg.Wait()
	t.Logf("%d sequences in %.1f s, %v; %d failed: %v", ran.Load(), time.Since(began).Seconds(), flavours, failed.Load(), kinds)
}
