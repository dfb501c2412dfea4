package metamorphic

import (
	"fmt"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Calls that the filter asks about, by what their arguments name.
var (
	// fdCalls have the descriptor of the file first.
	fdCalls = map[int32]string{
		unix.SYS_WRITE: "write", unix.SYS_PWRITE64: "pwrite64", unix.SYS_WRITEV: "writev", unix.SYS_PWRITEV: "pwritev",
		unix.SYS_FTRUNCATE: "ftruncate", unix.SYS_FALLOCATE: "fallocate", unix.SYS_FSYNC: "fsync", unix.SYS_FDATASYNC: "fdatasync",
		unix.SYS_SYNC_FILE_RANGE: "sync_file_range", unix.SYS_SYNCFS: "syncfs", unix.SYS_FCHMOD: "fchmod", unix.SYS_FCHOWN: "fchown",
		unix.SYS_FSETXATTR: "fsetxattr",
	}
	// atCalls have a directory's descriptor and a path.
	atCalls = map[int32]string{
		unix.SYS_UNLINKAT: "unlinkat", unix.SYS_MKDIRAT: "mkdirat", unix.SYS_RENAMEAT: "renameat", unix.SYS_RENAMEAT2: "renameat2",
		unix.SYS_LINKAT: "linkat", unix.SYS_FCHMODAT: "fchmodat", unix.SYS_FCHOWNAT: "fchownat", unix.SYS_OPENAT: "openat",
	}
	// pathCalls have the path first, or have none.
	pathCalls = map[int32]string{
		unix.SYS_MOUNT: "mount", unix.SYS_UMOUNT2: "umount2", unix.SYS_FANOTIFY_MARK: "fanotify_mark", unix.SYS_TRUNCATE: "truncate",
		unix.SYS_FSMOUNT: "fsmount", unix.SYS_MOVE_MOUNT: "move_mount", unix.SYS_OPEN_TREE: "open_tree", unix.SYS_SYMLINKAT: "symlinkat",
	}
)

// install puts the filter on all threads of this process and returns the
// descriptor that the questions come to.
func install() (int, error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	const numberAt, flagsAt = 0, 16 + 2*8 // struct seccomp_data: nr, and the low half of args[2]
	ask := unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_USER_NOTIF}
	allow := unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW}
	load := func(at uint32) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: at}
	}
	program := []unix.SockFilter{load(numberAt)}
	for _, calls := range []map[int32]string{fdCalls, atCalls, pathCalls} {
		for number := range calls {
			if number == unix.SYS_OPENAT {
				continue
			}
			program = append(program, unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: uint32(number), Jf: 1}, ask)
		}
	}
	program = append(
		program,
		unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: unix.SYS_OPENAT, Jf: 3},
		load(flagsAt),
		unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JSET | unix.BPF_K, K: unix.O_CREAT, Jf: 1},
		ask,
		allow,
	)
	prog := unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]}
	flags := unix.SECCOMP_FILTER_FLAG_NEW_LISTENER | unix.SECCOMP_FILTER_FLAG_TSYNC | unix.SECCOMP_FILTER_FLAG_TSYNC_ESRCH |
		unix.SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV
	fd, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, uintptr(flags), uintptr(unsafe.Pointer(&prog)))
	if errno != 0 {
		return -1, fmt.Errorf("seccomp: %w", errno)
	}
	return int(fd), nil
}

// notification is struct seccomp_notif.
type notification struct {
	ID     uint64
	Pid    uint32
	Flags  uint32
	Number int32
	Arch   uint32
	IP     uint64
	Args   [6]uint64
}

// response is struct seccomp_notif_resp.
type response struct {
	ID    uint64
	Val   int64
	Error int32
	Flags uint32
}

// receive waits for a question. ok is false when no process is left that asks.
func receive(listener int) (n notification, ok bool) {
	for {
		set := []unix.PollFd{{Fd: int32(listener), Events: unix.POLLIN}}
		if _, err := unix.Poll(set, -1); err != nil {
			if err == unix.EINTR {
				continue
			}
			return n, false
		}
		if set[0].Revents&unix.POLLIN == 0 {
			return n, false
		}
		n = notification{} // the kernel wants zeros
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(listener), unix.SECCOMP_IOCTL_NOTIF_RECV, uintptr(unsafe.Pointer(&n)))
		if errno == 0 {
			return n, true
		}
		if errno != unix.EINTR && errno != unix.ENOENT {
			return n, false
		}
	}
}

// reply answers a question: zero lets the call go on. One whose asker has died is
// not there any more.
func reply(listener int, id uint64, errno unix.Errno) {
	r := response{ID: id, Error: -int32(errno)}
	if errno == 0 {
		r.Flags = unix.SECCOMP_USER_NOTIF_FLAG_CONTINUE
	}
	_, _, _ = unix.Syscall(unix.SYS_IOCTL, uintptr(listener), unix.SECCOMP_IOCTL_NOTIF_SEND, uintptr(unsafe.Pointer(&r)))
}
