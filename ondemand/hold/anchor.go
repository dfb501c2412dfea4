package hold

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// anchorFD is the first descriptor that an anchor inherits to hold, behind the
// standard streams. Those that follow are in the order of its labels.
const anchorFD = 3

// RunAnchor is an anchor's life until it is frozen.
func RunAnchor() {
	for {
		time.Sleep(time.Hour)
	}
}

// anchors are the frozen processes of a directory. Their command lines say what
// they hold: args, a generation, and the labels.
type anchors struct {
	*freezer
	args []string
}

// anchor is one of them.
type anchor struct {
	pid, generation int
	labels          []string
}

// list is sorted, the youngest first.
func (a *anchors) list() (all []anchor, err error) {
	pids, err := a.pids()
	if err != nil {
		return nil, err
	}
	for _, pid := range pids {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		if errors.Is(err, os.ErrNotExist) {
			continue // somebody has let it out, dead
		}
		if err != nil {
			return nil, err
		}
		words := strings.Split(strings.TrimSuffix(string(b), "\x00"), "\x00")
		one := anchor{pid: pid}
		if at := 1 + len(a.args); len(words) > at && slices.Equal(words[1:at], a.args) {
			one.generation, _ = strconv.Atoi(words[at]) // 0 for what is none of ours
			one.labels = words[at+1:]
		}
		all = append(all, one)
	}
	slices.SortFunc(all, func(x, y anchor) int { return y.generation - x.generation })
	return all, nil
}

// take returns duplicates of what is held, the youngest anchor's first.
func (a *anchors) take() (held []Held, err error) {
	all, err := a.list()
	if err != nil {
		return nil, err
	}
	for _, one := range all {
		pidfd, err := unix.PidfdOpen(one.pid, 0)
		if err != nil {
			return held, os.NewSyscallError("pidfd_open", err)
		}
		for i, label := range one.labels {
			fd, err := unix.PidfdGetfd(pidfd, anchorFD+i, 0)
			if err != nil {
				return held, errors.Join(os.NewSyscallError("pidfd_getfd", err), unix.Close(pidfd))
			}
			held = append(held, Held{label, os.NewFile(uintptr(fd), label)})
		}
		if err := unix.Close(pidfd); err != nil {
			return held, err
		}
	}
	return held, nil
}

// replace starts an anchor that holds some descriptors, and ends all others.
func (a *anchors) replace(held shelf[int]) error {
	others, err := a.list()
	if err != nil {
		return err
	}
	generation := 1
	if len(others) > 0 {
		generation += others[0].generation
	}
	pid, err := a.start(generation, held)
	if err != nil {
		return err
	}
	if err := a.add(pid); err != nil {
		return errors.Join(err, a.freezer.kill(pid))
	}
	return a.kill(others)
}

// start runs the process. Not by os/exec, which would make the descriptions of
// what is held blocking, for all who share them.
func (a *anchors) start(generation int, held shelf[int]) (pid int, err error) {
	self, err := os.Executable()
	if err != nil {
		return 0, err
	}
	null, err := unix.Open(os.DevNull, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, &os.PathError{Op: "open", Path: os.DevNull, Err: err}
	}
	defer unix.Close(null)
	// systemd leaves processes that begin with @ to the end of a shutdown
	// (ROOT_STORAGE_DAEMONS), and does not wait for them.
	argv := append(append([]string{"@lacuna-anchor"}, a.args...), strconv.Itoa(generation))
	// Should we die before it is frozen, it dies too; later the signal waits.
	attr := &syscall.ProcAttr{Dir: "/", Sys: &syscall.SysProcAttr{Setsid: true, Pdeathsig: unix.SIGKILL}}
	for range anchorFD {
		attr.Files = append(attr.Files, uintptr(null))
	}
	for _, h := range held {
		argv = append(argv, h.label)
		attr.Files = append(attr.Files, uintptr(h.thing))
	}
	if pid, err = syscall.ForkExec(self, argv, attr); err != nil {
		return 0, fmt.Errorf("start anchor: %w", err)
	}
	go func() { _, _ = unix.Wait4(pid, nil, 0, nil) }() // no zombie while we live
	// The killer of memory hogs would wait for it in vain.
	_ = os.WriteFile(fmt.Sprintf("/proc/%d/oom_score_adj", pid), []byte("-1000"), 0)
	return pid, nil
}

func (a *anchors) kill(list []anchor) error {
	var errs []error
	for _, one := range list {
		errs = append(errs, a.freezer.kill(one.pid))
	}
	return errors.Join(errs...)
}

// end ends all, and removes the group.
func (a *anchors) end() error {
	list, err := a.list()
	if err := errors.Join(err, a.kill(list)); err != nil {
		return err
	}
	return a.remove()
}

// Anchor has one more process hold what is kept under some labels: one that is
// frozen, and that SIGKILL does not end. What is not kept is passed over. It is
// for when daemon and keepers are killed all at once; it fails where the kernel
// has no version 1 freezer, and in PID namespaces.
func (s *Set) Anchor(labels ...string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.anchors == nil {
		return s.noAnchor
	}
	var held shelf[int]
	for _, label := range labels {
		if i := s.held.find(label); i >= 0 {
			held.put(label, s.held[i].thing)
		}
	}
	err := s.anchors.replace(held)
	s.anchored = err == nil
	return err
}

// Anchored reports whether Anchor has succeeded.
func (s *Set) Anchored() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.anchored
}

// EndAnchors ends the anchors of a directory. Where none can be there are none.
func EndAnchors(dir string) error {
	f, err := openFreezer(dir)
	if err != nil {
		return nil //nolint:nilerr // see above
	}
	return errors.Join((&anchors{freezer: f}).end(), f.close())
}
