package fanotify

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/lacuna-snapshotter/lacuna/erofs"
	"github.com/lacuna-snapshotter/lacuna/internal/descriptor"
	"github.com/lacuna-snapshotter/lacuna/ondemand"
)

// attached is a blob whose holes we fill.
type attached struct {
	blob      *ondemand.Blob
	bootstrap string
	file      *os.File // the blob's, whatever has its path later
}

// inode is a file's identity.
type inode struct{ dev, ino uint64 }

func identity(st *unix.Stat_t) inode { return inode{st.Dev, st.Ino} }

func (s *Server) blob(id inode) *ondemand.Blob {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if a := s.attached[id]; a != nil {
		return a.blob
	}
	return nil
}

// find returns what is attached of a blob, nil where nothing is.
func (s *Server) find(b *ondemand.Blob) (inode, *attached) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	for id, a := range s.attached {
		if a.blob == b {
			return id, a
		}
	}
	return inode{}, nil
}

// holes is how many attached blobs have any.
func (s *Server) holes() (n int) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	for _, a := range s.attached {
		if !a.blob.Complete() {
			n++
		}
	}
	return n
}

// Serves implements ondemand.Transport: durable blobs are the kernel's own. One that
// is only complete may have holes again.
func (s *Server) Serves(b *ondemand.Blob) bool { return !b.Durable() }

// Needed implements ondemand.Transport, by the marks that the kernel has: also
// those of blobs that are not attached.
func (s *Server) Needed() bool {
	list, err := marks(s.group)
	if err != nil {
		s.log.Error("the marks of the fanotify group cannot be read", "error", err)
	}
	return err != nil || len(list) > 0
}

// allAttached fails where the kernel may have marked a file that is not attached.
func (s *Server) allAttached() error {
	list, err := marks(s.group)
	if err != nil {
		return err
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	known := map[uint64]bool{}
	for id := range s.attached {
		known[id.ino] = true
	}
	for _, ino := range list {
		if !known[ino] {
			return fmt.Errorf("inode %d is marked and not attached", ino)
		}
	}
	return nil
}

// Revive implements ondemand.Reviver. The kernel has let readers through.
func (s *Server) Revive(b *ondemand.Blob) error {
	if !b.Complete() {
		return errors.New("holes may have been read as zeros")
	}
	return nil
}

// Mount implements ondemand.Transport.
func (s *Server) Mount(b *ondemand.Blob, bootstrap, target string) error {
	return erofs.Mount(bootstrap, b.Path(), target)
}

// Attach implements ondemand.Transport. A durable blob needs no marking, but may
// have events of the time before a dead daemon had completed it.
func (s *Server) Attach(b *ondemand.Blob, bootstrap string) error {
	file, err := os.Open(b.Path())
	if err != nil {
		return err
	}
	a := &attached{b, bootstrap, file}
	var st unix.Stat_t
	err = descriptor.Use(file, func(fd int) error { return unix.Fstat(fd, &st) })
	if err != nil {
		return errors.Join(&os.PathError{Op: "stat", Path: b.Path(), Err: err}, file.Close())
	}
	// Before the mark: an event of it must find its blob.
	s.mu.Lock()
	old := s.attached[identity(&st)]
	s.attached[identity(&st)] = a
	s.mu.Unlock()
	if old != nil { // the blob was closed and opened again
		err = old.file.Close()
	}
	if err == nil && s.Serves(b) {
		err = mark(s.group, unix.FAN_MARK_ADD, file)
	}
	if err != nil {
		return errors.Join(err, s.forget(identity(&st), a))
	}
	return nil
}

// forget ends the use of what is attached.
func (s *Server) forget(id inode, a *attached) error {
	s.mu.Lock()
	same := s.attached[id] == a
	if same {
		delete(s.attached, id)
	}
	s.mu.Unlock()
	if !same {
		return nil
	}
	return a.file.Close()
}

// detachAll closes the files of all attached blobs and leaves the kernel's marks.
func (s *Server) detachAll() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var errs []error
	for _, a := range s.attached {
		errs = append(errs, a.file.Close())
	}
	clear(s.attached)
	return errors.Join(errs...)
}

// Release implements ondemand.Releaser. Requests under way are still answered.
func (s *Server) Release(b *ondemand.Blob) error {
	_, a := s.find(b)
	if a == nil {
		return nil
	}
	return unmark(s.group, a.file)
}

// Detach implements ondemand.Transport. Without its mark holes read as zeros: a
// blob that has any, or may have, keeps it as long as a process can read it.
func (s *Server) Detach(b *ondemand.Blob) error {
	id, a := s.find(b)
	if a == nil {
		return nil
	}
	if s.Serves(b) {
		if used, err := erofs.InUse(a.bootstrap); used || err != nil {
			return ondemand.Busy(b, err)
		}
	}
	if err := unmark(s.group, a.file); err != nil {
		return err
	}
	return s.forget(id, a)
}

func unmark(group, file *os.File) error {
	err := mark(group, unix.FAN_MARK_REMOVE, file)
	if errors.Is(err, unix.ENOENT) {
		return nil // it was removed before
	}
	return err
}

// mark adds or removes the mark on a file.
func mark(group *os.File, op uint, file *os.File) error {
	err := descriptor.Use(group, func(group int) error {
		return descriptor.Use(file, func(fd int) error {
			return unix.FanotifyMark(group, op, unix.FAN_PRE_ACCESS, fd, "") // of the descriptor itself
		})
	})
	if err != nil {
		return fmt.Errorf("fanotify_mark %s: %w%s", file.Name(), err, hint(err))
	}
	return nil
}

// marks are the inode numbers of the files that the kernel has marked for a group
// (fs/notify/fdinfo.c, fanotify_fdinfo).
func marks(group *os.File) (list []uint64, err error) {
	var info []byte
	err = descriptor.Use(group, func(fd int) (err error) {
		info, err = os.ReadFile(fmt.Sprintf("/proc/self/fdinfo/%d", fd))
		return err
	})
	if err != nil {
		return nil, err
	}
	for line := range strings.Lines(string(info)) {
		rest, isMark := strings.CutPrefix(line, "fanotify ino:")
		if !isMark {
			continue
		}
		hex, _, _ := strings.Cut(rest, " ")
		ino, err := strconv.ParseUint(hex, 16, 64)
		if err != nil {
			return nil, fmt.Errorf("mark of a fanotify group: %w", err)
		}
		list = append(list, ino)
	}
	return list, nil
}
