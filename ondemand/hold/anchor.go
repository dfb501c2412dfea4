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

// RunAnchor is an anchor's life until the daemon freezes it.
func RunAnchor() {
	for {
		time.Sleep(time.Hour)
	}
}

// anchors are the frozen processes of a directory, one holder: what the youngest
// holds counts. Their command lines say what they hold: args, a generation, and the
// labels.
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
			continue // a daemon has ended it meanwhile
		}
		if err != nil {
			return nil, err
		}
		words := strings.Split(strings.TrimSuffix(string(b), "\x00"), "\x00")
		one := anchor{pid: pid}
		if at := 1 + len(a.args); len(words) > at && slices.Equal(words[1:at], a.args) {
			one.generation, _ = strconv.Atoi(words[at]) // 0 for other processes
			one.labels = words[at+1:]
		}
		all = append(all, one)
	}
	slices.SortFunc(all, func(x, y anchor) int { return y.generation - x.generation })
	return all, nil
}

var _ holder = (*anchors)(nil)

// openAnchors fails where there can be no anchor.
func openAnchors(dir string, args []string) (*anchors, error) {
	f, err := openFreezer(dir)
	if err != nil {
		return nil, err
	}
	return &anchors{f, args}, nil
}

// hold does nothing: what an anchor holds is fixed when it is started, by replace.
func (a *anchors) hold(string, int) error { return nil }

// release does nothing either: the anchor that replaces this one does not hold what
// was released.
func (a *anchors) release(string) error { return nil }

// adopt asks the youngest anchor first.
func (a *anchors) adopt() (list []held, err error) {
	all, err := a.list()
	if err != nil {
		return nil, err
	}
	for _, one := range all {
		pidfd, err := unix.PidfdOpen(one.pid, 0)
		if err != nil {
			return list, os.NewSyscallError("pidfd_open", err)
		}
		for i, label := range one.labels {
			fd, err := unix.PidfdGetfd(pidfd, anchorFD+i, 0)
			if err != nil {
				return list, errors.Join(os.NewSyscallError("pidfd_getfd", err), unix.Close(pidfd))
			}
			list = append(list, held{label, os.NewFile(uintptr(fd), label)})
		}
		if err := unix.Close(pidfd); err != nil {
			return list, err
		}
	}
	return list, nil
}

// replace starts an anchor that holds some descriptors, and ends all others.
func (a *anchors) replace(what shelf[int]) error {
	others, err := a.list()
	if err != nil {
		return err
	}
	generation := 1
	if len(others) > 0 {
		generation += others[0].generation
	}
	pid, err := a.start(generation, what)
	if err != nil {
		return err
	}
	if err := a.add(pid); err != nil {
		return errors.Join(err, a.freezer.kill(pid))
	}
	return a.kill(others)
}

// start runs the process. Not by os/exec, which would make the open file
// descriptions that are held blocking, also for the other processes that share them.
func (a *anchors) start(generation int, what shelf[int]) (pid int, err error) {
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
	// If the daemon dies before the anchor is frozen, the anchor dies too. Once it is
	// frozen the signal waits.
	attr := &syscall.ProcAttr{Dir: "/", Sys: &syscall.SysProcAttr{Setsid: true, Pdeathsig: unix.SIGKILL}}
	for range anchorFD {
		attr.Files = append(attr.Files, uintptr(null))
	}
	for _, one := range what {
		argv = append(argv, one.label)
		attr.Files = append(attr.Files, uintptr(one.thing))
	}
	if pid, err = syscall.ForkExec(self, argv, attr); err != nil {
		return 0, fmt.Errorf("start anchor: %w", err)
	}
	go func() { _, _ = unix.Wait4(pid, nil, 0, nil) }() // no zombie while we live
	// The OOM killer must not choose it, and wait for its memory in vain.
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

func (a *anchors) leave() error { return a.close() }

// end ends all anchors, and removes their cgroup.
func (a *anchors) end() error {
	list, err := a.list()
	if err = errors.Join(err, a.kill(list)); err == nil {
		err = a.remove()
	}
	return errors.Join(err, a.close())
}

// Anchor starts an anchor that holds what is held under some labels; labels under
// which nothing is held are skipped. It fails where the kernel has no version 1
// freezer, and in PID namespaces. The anchors of earlier daemons are ended when the
// new one is frozen.
func (h *Holders) Anchor(labels ...string) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.anchors == nil {
		return h.noAnchor
	}
	var what shelf[int]
	for _, label := range labels {
		if i := h.own.find(label); i >= 0 {
			what.put(label, h.own[i].thing)
		}
	}
	err := h.anchors.replace(what)
	h.anchored = err == nil
	return err
}

// Anchored reports whether Anchor has succeeded.
func (h *Holders) Anchored() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.anchored
}

// EndAnchors ends the anchors of a directory.
func EndAnchors(dir string) error {
	f, err := openFreezer(dir)
	if err != nil {
		return nil //nolint:nilerr // where there can be no anchor there is none
	}
	return (&anchors{freezer: f}).end()
}
