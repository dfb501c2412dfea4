package metamorphic

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/lacuna-snapshotter/lacuna/fetcher/registry/registrytest"
	"github.com/lacuna-snapshotter/lacuna/ondemand/fanotify"
	"github.com/lacuna-snapshotter/lacuna/ondemand/hold/inflight"
)

// worker runs one sequence after the other, with processes that it uses again.
type worker struct {
	dir    string // for everything
	disk   *disk
	child  *child
	reader *reader
}

// sequence is one run.
type sequence struct {
	*worker
	t        *scope
	seed     uint64
	flavour  string
	root     string
	dir      string // of mounts and logs
	reg      *registrytest.Registry
	m        *model
	config   request
	boots    int
	ownDisk  *disk
	nodeLock sync.RWMutex // held while a node is replaced
	group    *os.File
	table    *inflight.Table

	lenient  atomic.Bool  // calls may fail just now
	faulted  atomic.Int64 // when they last might, in Unix nanoseconds
	faulty   atomic.Bool  // reads may fail just now
	troubled atomic.Bool  // there were faults in this sequence
	down     atomic.Bool  // the power is lost
	failed   atomic.Bool
	reads    sync.WaitGroup // in the background
	over     chan struct{}

	mu       sync.Mutex
	began    time.Time
	trace    []string
	failures []failure
}

// failure is a difference from the model.
type failure struct{ kind, text string }

// scope is a test that ends with a sequence.
type scope struct {
	testing.TB
	ends []func()
}

func (s *scope) Cleanup(f func()) { s.ends = append(s.ends, f) }

func (s *scope) end() {
	for i := len(s.ends) - 1; i >= 0; i-- {
		s.ends[i]()
	}
}

func (s *sequence) note(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.trace = append(s.trace, fmt.Sprintf("%7.1f ms  ", float64(time.Since(s.began).Microseconds())/1000)+fmt.Sprintf(format, args...))
}

// fail notes a failure; the sequence ends soon.
func (s *sequence) fail(kind, format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	s.note("FAILED: %s: %s", kind, text)
	s.mu.Lock()
	s.failures = append(s.failures, failure{kind, text})
	s.mu.Unlock()
	s.failed.Store(true)
}

// Kinds of failures.
const (
	wrongBytes = "wrong bytes"
	readError  = "read error"
	hang       = "hang"
	wrongCall  = "wrong outcome of a call"
	wrongState = "wrong state"
	leftovers  = "left over"
	untilStart = "left over until the next start"
	deadNode   = "node died"
)

var errPower = errors.New("there is no power")

// living returns the node, the next one where it was killed, as clients of a daemon
// try again until it is there.
func (s *sequence) living() (*child, error) {
	for {
		s.nodeLock.RLock()
		c := s.child
		s.nodeLock.RUnlock()
		_, struck, _ := c.supervisor.told()
		switch {
		case s.down.Load():
			return nil, errPower
		case s.failed.Load():
			return nil, errDied
		case !struck && !c.dead():
			return c, nil
		}
		time.Sleep(time.Millisecond)
	}
}

// call makes one call of the snapshotter.
func (s *sequence) call(what string, do func(context.Context, Snapshotter) error) error {
	c, err := s.living()
	if err != nil {
		return err
	}
	ctx, cancel := callContext()
	defer cancel()
	err = do(ctx, c.Snapshotter)
	outcome := "ok"
	if err != nil {
		outcome = err.Error()
	}
	s.note("%s: %s", what, outcome)
	if ctx.Err() != nil {
		s.fail(hang, "%s\n%s", what, c.stacks())
	}
	return err
}

// must reports whether a call has succeeded. An error is a failure of the sequence unless
// calls may fail at present.
func (s *sequence) must(what string, err error) bool {
	if err == nil {
		return true
	}
	// A layer that a fault has quarantined is rebuilt after a pause.
	mending := errdefs.IsUnavailable(err) && strings.Contains(err.Error(), "quarantined") && time.Now().UnixNano()-s.faulted.Load() < int64(*mend)
	if !s.lenient.Load() && !s.failed.Load() && !mending {
		s.fail(wrongCall, "%s: %v", what, err)
	}
	return false
}

// open has the node serve the root, under a plan.
func (s *sequence) open(adopted bool, p plan) error {
	q := s.config
	q.Adopted = adopted
	q.Root, q.Log = s.root, filepath.Join(s.dir, "log")
	q.Socket = filepath.Join(s.dir, "s")
	q.BootID = fmt.Sprintf("00000000-0000-0000-0000-%012d", s.boots)
	s.child.supervisor.set(s.root, p)
	return s.child.open(q, s.group, s.table.File())
}

// newGroup makes what keepers would hold.
func (s *sequence) newGroup() (err error) {
	if s.group != nil {
		s.group.Close()
	}
	s.boots++
	if s.group, err = fanotify.NewGroup(); err != nil {
		return err
	}
	s.table, err = inflight.New(fanotify.InFlight)
	return err
}

// freshChild replaces the process.
func (w *worker) freshChild() (err error) {
	w.child, err = startChild()
	return err
}

// adopt makes this sequence the one that the node's supervisor injects faults for.
func (s *sequence) adopt() {
	c := s.child
	c.supervisor.mu.Lock()
	running := c.supervisor.strike != nil
	c.supervisor.strike = func(action string) { s.strike(c, action) }
	c.supervisor.mu.Unlock()
	if !running {
		go c.supervisor.run()
	}
	go func() {
		select {
		case <-c.ended:
		case <-s.over:
			return
		}
		if !c.planned.Load() {
			s.fail(deadNode, "%.8000s", c.stderr)
			s.reader.kill() // it waits for a node
		}
	}()
}

// strike kills the node in the middle of one of its system calls.
func (s *sequence) strike(c *child, action string) {
	if action == power {
		s.losePower(c)
		return
	}
	c.kill()
	go s.respawn(c)
}

// respawn starts the next node, as systemd does. It may be killed too, as it starts
// or later, and the one after it.
func (s *sequence) respawn(dead *child) {
	s.nodeLock.Lock()
	defer s.nodeLock.Unlock()
	p := dead.supervisor.current()
	for s.child == dead {
		select {
		case <-s.over:
			return
		default:
		}
		if err := s.freshChild(); err != nil {
			s.fail(deadNode, "start a node: %v", err)
			return
		}
		p = p.next()
		s.adopt()
		s.note("the next node starts under the plan: %s", p)
		err := s.open(true, p)
		if _, struck, _ := s.child.supervisor.told(); struck {
			dead = s.child
			<-dead.ended
			continue
		}
		if err != nil {
			s.fail(wrongState, "the next node does not start: %v\n%.8000s", err, s.child.stderr)
			return
		}
	}
}

// quiet ends the plan, and waits for the next node where it has struck. It returns
// how many calls there were.
func (s *sequence) quiet() int {
	for {
		s.nodeLock.RLock()
		c := s.child
		s.nodeLock.RUnlock()
		count, struck, hits := c.supervisor.disarm()
		if len(hits) > 0 {
			s.note("calls that did not go through: %q", hits)
		}
		if struck {
			<-c.ended
		}
		if !struck && !c.dead() || s.failed.Load() || s.down.Load() {
			return count
		}
		time.Sleep(time.Millisecond) // until it is replaced
	}
}

// copied is where a loss of power leaves its disk.
func (s *sequence) copied() string { return s.ownDisk.image + ".copied" }

// losePower copies the disk at this moment and ends everything that runs.
func (s *sequence) losePower(c *child) {
	if s.down.Swap(true) {
		return
	}
	_ = unix.Kill(c.supervisor.pid, unix.SIGSTOP)
	s.reader.kill()
	if err := s.ownDisk.copy(s.copied()); err != nil {
		s.fail(wrongState, "copy the disk: %v", err)
	}
	c.kill()
	s.note("the power is lost")
}

// reboot boots the machine: from the copy of the disk if the power was lost. Containers
// do not run any more.
func (s *sequence) reboot() error {
	lost := s.down.Load()
	s.faulty.Store(true)
	s.child.kill()
	s.reader.kill()
	s.group.Close() // no reader waits any more
	s.group = nil
	s.reads.Wait()
	var err error
	if s.reader, err = startReader(); err != nil {
		return err
	}
	for _, c := range s.m.containers {
		c.mounted, c.held = false, map[int64]string{}
		c.unsound = c.unsound || lost
	}
	if err := s.unmountAll(); err != nil {
		return err
	}
	if lost {
		if err := s.ownDisk.unmount(); err != nil {
			return fmt.Errorf("unmount the disk: %w", err)
		}
		if err := os.Rename(s.copied(), s.ownDisk.image); err != nil {
			return err
		}
		if err := s.ownDisk.mount(); err != nil {
			return err
		}
	}
	if err := s.newGroup(); err != nil {
		return err
	}
	if err := s.freshChild(); err != nil {
		return err
	}
	s.adopt()
	s.down.Store(false)
	s.note("booted, disk lost its unwritten data: %v", lost)
	return s.open(false, plan{action: calm})
}

// unmountAll removes every mount of the sequence: containers' first.
func (s *sequence) unmountAll() error {
	var errs []error
	for _, dir := range []string{s.dir, s.root} {
		list, err := below(dir)
		errs = append(errs, err)
		for _, at := range list {
			if at != s.root {
				// A node that was killed may just have had it unmounted.
				if err := unix.Unmount(at, unix.MNT_DETACH); !errors.Is(err, unix.EINVAL) {
					errs = append(errs, err)
				}
			}
		}
	}
	return errors.Join(errs...)
}

// mountAt mounts what a snapshotter has answered.
func mountAt(mounts []mount.Mount, dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	return mount.All(mounts, dir)
}

// read has the reader read, and waits.
func (s *sequence) read(t task) (result, error) {
	if s.down.Load() {
		return result{}, errPower
	}
	r, err := s.reader.run(t)
	if errors.Is(err, errHang) && !s.down.Load() {
		s.nodeLock.RLock()
		defer s.nodeLock.RUnlock()
		s.fail(hang, "%s %s\n%s", t.Op, t.Path, s.child.stacks())
	}
	return r, err
}

// checkFile compares what was read of a file.
func (s *sequence) checkFile(where string, want *file, got fileResult, mayFail bool) error {
	n := got.N
	switch {
	case got.Sum == "": // it could not be opened
		if mayFail {
			return nil
		}
		return fmt.Errorf("%s: %s", where, got.Error)
	case n > int64(len(want.data)) || got.Sum != sumOf(want.data[:n]) || got.Error == "" && n != int64(len(want.data)):
		what := ""
		if got.Sum == sumOf(make([]byte, n)) && n > 0 {
			what = ", all zeros"
		}
		s.fail(wrongBytes, "%s: %d bytes of %d%s %s", where, n, len(want.data), what, got.Error)
		return errors.New("wrong bytes")
	case got.Error != "":
		if !mayFail && !s.faulty.Load() && !s.down.Load() {
			return fmt.Errorf("%s: %s", where, got.Error)
		}
	}
	return nil
}

// checkTree reads a whole tree and compares it. Wrong bytes are a failure; an
// error is the caller's to judge.
func (s *sequence) checkTree(where, dir string, want content, mayFail bool) error {
	got, err := s.read(task{Op: "tree", Path: dir})
	if err != nil {
		return fmt.Errorf("%s: %w", where, err)
	}
	var first error
	for name, f := range want {
		r, ok := got.Files[name]
		if !ok && mayFail {
			continue
		}
		if !ok {
			s.fail(wrongBytes, "%s: no file %s", where, name)
			return errors.New("no file")
		}
		if err := s.checkFile(where+" "+name, f, r, mayFail); err != nil && first == nil {
			first = err
		}
	}
	for name := range got.Files {
		if want[name] == nil && !strings.HasPrefix(name, "many/") {
			s.fail(wrongBytes, "%s: an unknown file %s", where, name)
		}
	}
	return first
}

// mends tries until it succeeds: once where there were no faults, and for some time
// where there were.
func (s *sequence) mends(try func() error) error {
	began, noted := time.Now(), 0
	for n := 0; ; n++ {
		err := try()
		if err == nil || s.failed.Load() || !s.troubled.Load() || time.Since(began) > *mend {
			return err
		}
		s.mu.Lock()
		if n == 0 { // the first try and the last are enough to read
			noted = len(s.trace)
		}
		s.trace = s.trace[:noted]
		s.mu.Unlock()
		time.Sleep(50 * time.Millisecond)
	}
}

// mended makes it a failure where that does not succeed.
func (s *sequence) mended(kind, what string, try func() error) bool {
	err := s.mends(try)
	if err != nil && !s.failed.Load() {
		s.fail(kind, "%s: %v", what, err)
	}
	return err == nil
}

// notFound reports that there is nothing, as containerd hears it.
func notFound(err error) bool { return errdefs.IsNotFound(err) }

func pick[T any](r *rand.Rand, list []T) (v T, ok bool) {
	if len(list) == 0 {
		return v, false
	}
	return list[r.IntN(len(list))], true
}
