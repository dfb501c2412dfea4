package metamorphic

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Actions of a plan.
const (
	calm  = "calm"  // every call goes through
	delay = "delay" // some calls take their time
	fail  = "fail"  // calls fail
	kill  = "kill"  // the node dies before a call
	power = "power" // the machine loses its power before a call
)

// plan says what is done to the system calls of the node that write.
type plan struct {
	action string
	at     int    // the call, counted from 1, that it begins with
	count  int    // fail: so many calls
	seed   uint64 // of delays and errors
	only   string // fail, kill: count only this call; empty is every one
	again  int    // kill: so many more nodes
}

// next is the plan for the node that comes after one that was killed.
func (p plan) next() plan {
	if p.action != kill || p.again == 0 {
		return plan{action: calm}
	}
	r := rand.New(rand.NewPCG(p.seed, uint64(p.again)))
	return plan{action: kill, at: 1 + r.IntN(2<<r.IntN(6)), seed: p.seed, again: p.again - 1}
}

func (p plan) String() string {
	switch p.action {
	case calm, delay:
		return p.action
	case fail:
		return strings.TrimSpace(fmt.Sprintf("fail calls [%d,%d) %s", p.at, p.at+p.count, p.only))
	}
	return strings.TrimSpace(fmt.Sprintf("%s before call %d %s", p.action, p.at, p.only))
}

// supervisor answers the filter of one node.
type supervisor struct {
	listener int
	pid      int
	strike   func(action string) // kill or power; the node is dead when it returns

	mu     sync.Mutex
	root   string // files below it count
	plan   plan
	r      *rand.Rand
	count  int
	struck bool
	hits   []string // what was done to which call
}

// errnos are what a call may fail with.
func errnos(call string) []unix.Errno {
	switch call {
	case "mount", "fsmount", "move_mount":
		return []unix.Errno{unix.ENOMEM, unix.EIO, unix.EBUSY}
	case "umount2":
		return []unix.Errno{unix.EBUSY, unix.EIO, unix.ENOMEM}
	case "fanotify_mark":
		return []unix.Errno{unix.ENOMEM, unix.ENOSPC}
	case "fsync", "fdatasync", "sync_file_range", "syncfs":
		return []unix.Errno{unix.EIO, unix.ENOSPC}
	case "openat":
		return []unix.Errno{unix.ENOSPC, unix.EMFILE, unix.EIO, unix.EROFS}
	case "unlinkat", "fchmod", "fchmodat", "fchown", "fchownat":
		return []unix.Errno{unix.EIO, unix.EROFS}
	}
	return []unix.Errno{unix.ENOSPC, unix.EIO, unix.EROFS}
}

// set starts a plan.
func (s *supervisor) set(root string, p plan) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.root, s.plan, s.count, s.hits = root, p, 0, nil
	s.r = rand.New(rand.NewPCG(p.seed, 7))
}

// told returns how many calls there were, and whether and how the plan has injected its
// fault.
func (s *supervisor) told() (count int, struck bool, hits []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.count, s.struck, append([]string(nil), s.hits...)
}

// disarm ends the plan and returns the same.
func (s *supervisor) disarm() (count int, struck bool, hits []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.struck {
		s.plan.action = calm
	}
	return s.count, s.struck, append([]string(nil), s.hits...)
}

func (s *supervisor) current() plan {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.plan
}

func (s *supervisor) run() {
	defer unix.Close(s.listener)
	var work sync.WaitGroup
	defer work.Wait()
	for {
		n, ok := receive(s.listener)
		if !ok {
			return
		}
		call, path, counts := s.look(n)
		if !counts {
			reply(s.listener, n.ID, 0)
			continue
		}
		wait, errno, strike := s.decide(call, path)
		if wait == 0 && strike == "" {
			reply(s.listener, n.ID, errno)
			continue
		}
		work.Add(1)
		go func() {
			defer work.Done()
			time.Sleep(wait)
			if strike != "" {
				s.strike(strike)
			}
			reply(s.listener, n.ID, errno)
		}()
	}
}

// decide follows the plan for one call.
func (s *supervisor) decide(call, path string) (wait time.Duration, errno unix.Errno, strike string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.plan.only != "" && s.plan.only != call {
		return 0, 0, ""
	}
	s.count++
	hit := func(what string) {
		s.hits = append(s.hits, fmt.Sprintf("call %d, %s %s: %s", s.count, call, path, what))
	}
	switch s.plan.action {
	case delay:
		if s.r.IntN(6) == 0 {
			wait = time.Duration(s.r.IntN(4000)) * time.Microsecond
		}
	case fail:
		if s.count >= s.plan.at && s.count < s.plan.at+s.plan.count && path != fanotifyFile {
			list := errnos(call)
			errno = list[s.r.IntN(len(list))]
			hit(errno.Error())
		}
	case kill, power:
		if s.count == s.plan.at && !s.struck {
			s.struck, strike = true, s.plan.action
			hit(strike)
		}
	}
	return wait, errno, strike
}

const fanotifyFile = "anon_inode:[fanotify]"

// look tells what a call is about. Those on files elsewhere, sockets and logs, do
// not count.
func (s *supervisor) look(n notification) (call, path string, counts bool) {
	s.mu.Lock()
	root := s.root
	s.mu.Unlock()
	if root == "" {
		return "", "", false
	}
	if call, ok := fdCalls[n.Number]; ok {
		path, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/%d", n.Pid, int32(n.Args[0])))
		rel, below := strings.CutPrefix(path, root+"/")
		return call, rel, err == nil && (below || path == fanotifyFile)
	}
	if call, ok := atCalls[n.Number]; ok {
		path := s.text(n.Pid, n.Args[1])
		if !strings.HasPrefix(path, "/") {
			dir, _ := os.Readlink(fmt.Sprintf("/proc/%d/fd/%d", n.Pid, int32(n.Args[0])))
			path = dir + "/" + path
		}
		rel, below := strings.CutPrefix(path, root+"/")
		if n.Number == unix.SYS_RENAMEAT || n.Number == unix.SYS_LINKAT {
			to, _ := strings.CutPrefix(s.text(n.Pid, n.Args[3]), root+"/")
			rel += " " + to
		}
		return call, rel, below
	}
	call = pathCalls[n.Number]
	at := n.Args[0]
	if n.Number == unix.SYS_FANOTIFY_MARK {
		at = n.Args[4]
	}
	if n.Number == unix.SYS_MOUNT || n.Number == unix.SYS_UMOUNT2 || n.Number == unix.SYS_FANOTIFY_MARK {
		path, _ = strings.CutPrefix(s.text(n.Pid, at), root+"/")
	}
	return call, path, true
}

// text reads a string of the node's memory.
func (s *supervisor) text(pid uint32, at uint64) string {
	b := make([]byte, 256)
	local := []unix.Iovec{{Base: &b[0]}}
	local[0].SetLen(len(b))
	n, err := unix.ProcessVMReadv(int(pid), local, []unix.RemoteIovec{{Base: uintptr(at), Len: len(b)}}, 0)
	if err != nil || n <= 0 { // perhaps the page ends before
		rest := 4096 - int(at%4096)
		local[0].SetLen(min(rest, len(b)))
		if n, err = unix.ProcessVMReadv(int(pid), local, []unix.RemoteIovec{{Base: uintptr(at), Len: min(rest, len(b))}}, 0); err != nil {
			return "?"
		}
	}
	text, _, _ := bytes.Cut(b[:n], []byte{0})
	return string(text)
}
