// Package lock keeps two daemons out of one place: a root directory, or the path of
// a socket. Adopting what an earlier daemon left is safe only when one daemon does it.
package lock

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

// Patience is how long a start waits for a lock: a child that a killed daemon was about
// to execute has the lock's file open too, until it is executed.
const Patience = 5 * time.Second

// Lock is a file that one daemon at a time has locked. Its text tells other daemons
// who that is, and the next daemon who it was.
type Lock struct{ file *os.File }

// Owner is the text of a lock file, JSON.
type Owner struct {
	Root string `json:"root"`
	PID  int    `json:"pid"`

	// Of a socket's lock: the listening socket, by its number in sockfs, and the
	// file that bind(2) made at its path.
	Socket uint64 `json:"socket,omitempty"`
	Name   Inode  `json:"name,omitzero"`
}

// Inode is one file, as long as it exists.
type Inode struct {
	Dev uint64 `json:"dev"`
	Ino uint64 `json:"ino"`
}

// ErrLocked says that another daemon has the lock.
var ErrLocked = errors.New("another lacuna-snapshotter")

// Take locks a file, which it creates where it is missing. The file is never removed:
// a daemon that waits for its lock would get the lock of a file that no other daemon
// finds.
func Take(path string, patience time.Duration) (*Lock, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	l := &Lock{f}
	for deadline := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
		err := descriptor.Use(f, func(fd int) error { return unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB) })
		switch {
		case err == nil:
			return l, nil
		case !errors.Is(err, unix.EAGAIN):
			f.Close()
			return nil, fmt.Errorf("lock %s: %w", path, err)
		case time.Now().After(deadline):
			defer f.Close()
			o, _ := l.Owner() // empty while that daemon writes it
			return nil, fmt.Errorf("%w (%s)", ErrLocked, o)
		}
	}
}

// Root locks a root directory, which it creates where it is missing.
func Root(root string) (*Lock, error) {
	if err := os.MkdirAll(root, 0o700); err != nil {
		return nil, err
	}
	l, err := Take(filepath.Join(root, "lock"), Patience)
	if errors.Is(err, ErrLocked) {
		err = fmt.Errorf("root %s is in use: %w", root, err)
	}
	if err != nil {
		return nil, err
	}
	return l, l.SetOwner(Owner{Root: root, PID: os.Getpid()})
}

// Owner reads which daemon has the lock, or had it last; ok is false where the file
// does not say.
func (l *Lock) Owner() (o Owner, ok bool) {
	const most = 8 << 10 // a root's path and some numbers
	b, err := io.ReadAll(io.NewSectionReader(l.file, 0, most))
	return o, err == nil && json.Unmarshal(b, &o) == nil
}

// SetOwner writes which daemon has the lock. It overwrites the old text: on a full disk
// there is no room for another file, and a daemon must start on one.
func (l *Lock) SetOwner(o Owner) error {
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

// At reports whether the lock is the file at a path.
func (l *Lock) At(path string) bool {
	var st unix.Stat_t
	if err := descriptor.Use(l.file, func(fd int) error { return unix.Fstat(fd, &st) }); err != nil {
		return false
	}
	at, err := InodeAt(path)
	return err == nil && at == Inode{st.Dev, st.Ino}
}

// Unlock lets another daemon take the lock.
func (l *Lock) Unlock() { l.file.Close() }

func (o Owner) String() string {
	if o.PID == 0 {
		return "which one is not known"
	}
	return fmt.Sprintf("process %d with root %s", o.PID, o.Root)
}

// InodeAt is the file at a path.
func InodeAt(path string) (Inode, error) {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return Inode{}, &os.PathError{Op: "stat", Path: path, Err: err}
	}
	return Inode{st.Dev, st.Ino}, nil
}
