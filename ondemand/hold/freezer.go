package hold

import (
	"errors"
	"fmt"
	"os"
	"path"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// freezer is a group of processes that are frozen for good: a cgroup of the
// version 1 freezer (Documentation/admin-guide/cgroup-v1/freezer-subsystem.rst).
// A process in it does not run, not even to die: SIGKILL takes effect when the
// process leaves the cgroup (kernel/freezer.c, __refrigerator). The freezer of
// version 2 thaws a process that is killed.
type freezer struct {
	hierarchy *os.Root // of a mount that is at no path, and ends with it
	name      string
}

// initialPIDNamespace is /proc/self/ns/pid outside of containers
// (include/uapi/linux/nsfs.h, PID_NS_INIT_INO).
const initialPIDNamespace = "pid:[4026531836]"

// openFreezer returns the freezer of a directory; its cgroup is made when a process
// is added. The cgroup's name has the directory's device and inode, since the whole
// machine has one hierarchy.
func openFreezer(dir string) (*freezer, error) {
	ns, err := os.Readlink("/proc/self/ns/pid")
	if err != nil {
		return nil, err
	}
	if ns != initialPIDNamespace {
		return nil, errors.New("this is a PID namespace, which could not end while a process in it is frozen")
	}
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		return nil, &os.PathError{Op: "stat", Path: dir, Err: err}
	}
	hierarchy, err := openHierarchy("freezer")
	if err != nil {
		return nil, fmt.Errorf("the version 1 freezer cgroup cannot be used: %w", err)
	}
	return &freezer{hierarchy, fmt.Sprintf("lacuna-%x-%d", st.Dev, st.Ino)}, nil
}

// openHierarchy opens the root of a version 1 hierarchy, whether or not it is
// mounted anywhere.
func openHierarchy(controller string) (*os.Root, error) {
	fs, err := unix.Fsopen("cgroup", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("fsopen", err)
	}
	defer unix.Close(fs)
	if err := errors.Join(unix.FsconfigSetFlag(fs, controller), unix.FsconfigCreate(fs)); err != nil {
		return nil, os.NewSyscallError("fsconfig", err)
	}
	mount, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_NOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("fsmount", err)
	}
	defer unix.Close(mount)
	return os.OpenRoot(fmt.Sprintf("/proc/self/fd/%d", mount))
}

func (f *freezer) write(file, text string) error {
	return f.hierarchy.WriteFile(path.Join(f.name, file), []byte(text), 0)
}

// pids are the processes in it.
func (f *freezer) pids() (list []int, err error) {
	b, err := f.hierarchy.ReadFile(path.Join(f.name, "cgroup.procs"))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	for s := range strings.FieldsSeq(string(b)) {
		pid, err := strconv.Atoi(s)
		if err != nil {
			return nil, err
		}
		list = append(list, pid)
	}
	return list, nil
}

// add freezes a process, and returns when it is frozen.
func (f *freezer) add(pid int) error {
	if err := f.hierarchy.Mkdir(f.name, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	if err := errors.Join(f.write("freezer.state", "FROZEN"), f.write("cgroup.procs", strconv.Itoa(pid))); err != nil {
		return err
	}
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		b, err := f.hierarchy.ReadFile(path.Join(f.name, "freezer.state"))
		if err != nil || string(b) == "FROZEN\n" {
			return err
		}
	}
	return fmt.Errorf("process %d does not freeze", pid)
}

// kill ends a process: it leaves the cgroup after it got the signal, and so runs no
// instruction of its own.
func (f *freezer) kill(pid int) error {
	if err := unix.Kill(pid, unix.SIGKILL); err != nil {
		return os.NewSyscallError("kill", err)
	}
	return f.hierarchy.WriteFile("cgroup.procs", []byte(strconv.Itoa(pid)), 0)
}

// remove removes the empty cgroup, once those that were killed have left it.
func (f *freezer) remove() (err error) {
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		err = f.hierarchy.Remove(f.name)
		switch {
		case errors.Is(err, os.ErrNotExist):
			return nil
		case !errors.Is(err, unix.EBUSY):
			return err
		}
	}
	return err
}

func (f *freezer) close() error { return f.hierarchy.Close() }
