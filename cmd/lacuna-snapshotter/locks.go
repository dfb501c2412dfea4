package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lacuna-snapshotter/lacuna/internal/descriptor"
)

// lockTime is how long a start waits for a lock: a child that a killed daemon
// was about to execute has it too, until it is executed.
const lockTime = 5 * time.Second

// lock is a file that one daemon at a time has locked. What is written in it
// tells others who that is, and the next daemon who it was.
type lock struct{ file *os.File }

// owner is the text of a lock file, JSON.
type owner struct {
	Root string `json:"root"`
	PID  int    `json:"pid"`

	// Of a socket's lock: the listening socket, by its number in sockfs, and the
	// name that it was given.
	Socket uint64 `json:"socket,omitempty"`
	Name   inode  `json:"name,omitzero"`
}

// inode is one file, as long as it exists.
type inode struct {
	Dev uint64 `json:"dev"`
	Ino uint64 `json:"ino"`
}

// errLocked says that another daemon has the lock.
var errLocked = errors.New("another lacuna-snapshotter")

// take locks a file, which it makes where it is missing. It is never removed:
// whoever waits for it would have locked a file that nobody else finds.
func take(path string, wait time.Duration) (*lock, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	l := &lock{f}
	for deadline := time.Now().Add(wait); ; time.Sleep(20 * time.Millisecond) {
		err := descriptor.Use(f, func(fd int) error { return unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB) })
		switch {
		case err == nil:
			return l, nil
		case !errors.Is(err, unix.EAGAIN):
			f.Close()
			return nil, fmt.Errorf("lock %s: %w", path, err)
		case time.Now().After(deadline):
			defer f.Close()
			o, _ := l.owner() // in the making, it names nobody
			return nil, fmt.Errorf("%w (%s)", errLocked, o)
		}
	}
}

// lockRoot keeps a second daemon out of the directory.
func lockRoot(root string) (*lock, error) {
	if err := os.MkdirAll(root, 0o700); err != nil {
		return nil, err
	}
	l, err := take(filepath.Join(root, "lock"), lockTime)
	if errors.Is(err, errLocked) {
		err = fmt.Errorf("root %s is in use: %w", root, err)
	}
	if err != nil {
		return nil, err
	}
	return l, l.note(owner{Root: root, PID: os.Getpid()})
}

// owner reads who has the lock, or had it last; ok is false where the file says
// nothing.
func (l *lock) owner() (o owner, ok bool) {
	const most = 8 << 10 // a root's path and some numbers
	b, err := io.ReadAll(io.NewSectionReader(l.file, 0, most))
	return o, err == nil && json.Unmarshal(b, &o) == nil
}

// note writes who has the lock, in the place of what was there: on a full disk there is
// no other, and a daemon must start on one.
func (l *lock) note(o owner) error {
	b, err := json.Marshal(o)
	if err != nil {
		return err
	}
	b = append(b, '\n')
	if _, err := l.file.WriteAt(b, 0); err != nil {
		return err
	}
	return l.file.Truncate(int64(len(b)))
}

// at reports whether the lock is the file at a path.
func (l *lock) at(path string) bool {
	var st unix.Stat_t
	if err := descriptor.Use(l.file, func(fd int) error { return unix.Fstat(fd, &st) }); err != nil {
		return false
	}
	at, err := inodeAt(path)
	return err == nil && at == inode{st.Dev, st.Ino}
}

// Close lets go of the lock.
func (l *lock) Close() error { return l.file.Close() }

func (o owner) String() string {
	if o.PID == 0 {
		return "which one is not known"
	}
	return fmt.Sprintf("process %d with root %s", o.PID, o.Root)
}

// inodeAt is the file that a path leads to.
func inodeAt(path string) (inode, error) {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return inode{}, &os.PathError{Op: "stat", Path: path, Err: err}
	}
	return inode{st.Dev, st.Ino}, nil
}
