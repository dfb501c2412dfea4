package hold

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/lacuna-snapshotter/lacuna/internal/descriptor"
)

// Set is several keepers that hold the same.
type Set struct {
	dir     string
	program Program
	log     *slog.Logger

	mu       sync.Mutex
	keepers  []*Keeper  // nil where one is missing
	systemd  *Systemd   // nil where no service manager has started us
	anchors  *anchors   // nil where there can be none
	noAnchor error      // why
	anchored bool       // by an anchor of ours
	held     shelf[int] // our own duplicates
	leaving  bool
	left     chan struct{} // closed when we are leaving
	watch    sync.WaitGroup
}

// Program is the command lines of this binary that lead to Run and to RunAnchor.
type Program struct{ Keeper, Anchor []string }

// Open connects to the keepers of a directory and starts those of count that
// are missing. Found is what the living ones hold, the service manager's store
// and the anchors, nil where there were none; it is the caller's, and is held on
// under its labels.
func Open(dir string, count int, program Program, log *slog.Logger) (s *Set, found map[string]*os.File, err error) {
	s = &Set{dir: dir, program: program, log: log, keepers: make([]*Keeper, count), left: make(chan struct{})}
	if s.systemd, found, err = OpenSystemd(); err != nil {
		log.Warn("the service manager's descriptor store cannot be used", "error", err)
	}
	for label, f := range found {
		if err := descriptor.Use(f, func(fd int) error { return s.hold(label, fd) }); err != nil {
			return nil, nil, err
		}
	}
	for i := range s.keepers {
		k, err := Connect(s.socket(i))
		if errors.Is(err, ErrNone) {
			continue
		}
		var held []Held
		if err == nil {
			held, err = k.Take()
		}
		if err != nil {
			log.Warn("a keeper does not answer; it is replaced", "socket", s.socket(i), "error", err)
			continue
		}
		s.keepers[i] = k
		if found, err = s.adopt(found, held); err != nil {
			return nil, nil, err
		}
	}
	if found, err = s.adoptAnchored(found); err != nil {
		return nil, nil, err
	}
	if err := s.complete(); err != nil {
		return nil, nil, err
	}
	return s, found, nil
}

// adopt adds to found, and holds, what is not there yet.
func (s *Set) adopt(found map[string]*os.File, held []Held) (map[string]*os.File, error) {
	if found == nil && len(held) > 0 {
		found = map[string]*os.File{}
	}
	for _, h := range held {
		if found[h.Label] != nil {
			h.File.Close() // the same, of another holder
			continue
		}
		found[h.Label] = h.File
		if err := descriptor.Use(h.File, func(fd int) error { return s.hold(h.Label, fd) }); err != nil {
			return nil, err
		}
	}
	return found, nil
}

// adoptAnchored looks for anchors, the last resort.
func (s *Set) adoptAnchored(found map[string]*os.File) (map[string]*os.File, error) {
	f, err := openFreezer(s.dir)
	if err != nil {
		s.noAnchor = err
		return found, nil //nolint:nilerr // Anchor tells
	}
	s.anchors = &anchors{f, s.program.Anchor}
	held, err := s.anchors.take()
	if err != nil {
		s.log.Warn("an anchor does not give what it holds", "error", err)
	}
	return s.adopt(found, held)
}

func (s *Set) socket(i int) string { return filepath.Join(s.dir, fmt.Sprintf("keeper%d.sock", i)) }

// hold keeps a duplicate for keepers to come.
func (s *Set) hold(label string, fd int) error {
	own, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("keep %s: %w", label, err)
	}
	if old, replaced := s.held.put(label, own); replaced {
		unix.Close(old)
	}
	return nil
}

func (s *Set) start(i int) (*Keeper, error) {
	k, err := Start(s.socket(i), s.program.Keeper...)
	if err != nil {
		return nil, err
	}
	if err := s.fill(k); err != nil {
		return nil, errors.Join(err, k.End())
	}
	return k, nil
}

// fill gives a keeper all that is held, in order: should we die meanwhile it has
// what was kept first.
func (s *Set) fill(k *Keeper) error {
	for _, h := range s.held {
		if err := k.Keep(h.label, h.thing); err != nil {
			return err
		}
	}
	return nil
}

// Keep holds a duplicate of a descriptor in every keeper.
func (s *Set) Keep(label string, fd int) error {
	if len(label) > maxLabel {
		return errLabel
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.hold(label, fd); err != nil {
		return err
	}
	if s.systemd != nil {
		if err := s.systemd.Keep(label, fd); err != nil && !errors.Is(err, errName) {
			s.log.Warn("the service manager does not keep a descriptor", "label", label, "error", err)
		}
	}
	return s.each(func(k *Keeper) error { return k.Keep(label, fd) })
}

// KeepFile is Keep for a file or a socket.
func (s *Set) KeepFile(label string, f syscall.Conn) error {
	return descriptor.Use(f, func(fd int) error { return s.Keep(label, fd) })
}

// Drop lets go of a label in every keeper.
func (s *Set) Drop(label string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if own, ok := s.held.take(label); ok {
		unix.Close(own)
	}
	s.forget(label)
	return s.each(func(k *Keeper) error { return k.Drop(label) })
}

// forget drops a label from the service manager's store.
func (s *Set) forget(label string) {
	if s.systemd == nil {
		return
	}
	if err := s.systemd.Drop(label); err != nil {
		s.log.Warn("the service manager does not drop a descriptor", "label", label, "error", err)
	}
}

// each calls f for every keeper. One that is dead is replaced with what is held
// by then, so its death is no error.
func (s *Set) each(f func(*Keeper) error) error {
	var errs []error
	for _, k := range s.keepers {
		if k == nil {
			continue
		}
		if err := f(k); err != nil && !errors.Is(err, errDead) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// Alive is how many keepers there are.
func (s *Set) Alive() (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, k := range s.keepers {
		if k == nil {
			continue
		}
		select {
		case <-k.Dead():
		default:
			n++
		}
	}
	return n
}

// Leave lets the keepers live on for the next daemon.
func (s *Set) Leave() error {
	err := s.part((*Keeper).Leave)
	if s.anchors != nil {
		err = errors.Join(err, s.anchors.close())
	}
	return err
}

// End ends keepers and anchors, and empties the service manager's store.
func (s *Set) End() error {
	if s.anchors != nil {
		if err := errors.Join(s.anchors.end(), s.anchors.close()); err != nil {
			s.log.Warn("an anchor is left", "error", err)
		}
	}
	s.mu.Lock()
	for _, h := range s.held {
		s.forget(h.label)
	}
	s.mu.Unlock()
	err := s.part((*Keeper).End)
	for i := range s.keepers {
		if rmErr := os.Remove(s.socket(i)); rmErr != nil && !errors.Is(rmErr, os.ErrNotExist) {
			err = errors.Join(err, rmErr)
		}
	}
	return err
}

func (s *Set) part(how func(*Keeper) error) error {
	s.mu.Lock()
	if !s.leaving {
		s.leaving = true
		close(s.left)
	}
	err := s.each(how)
	for _, h := range s.held {
		unix.Close(h.thing)
	}
	s.held = nil
	s.mu.Unlock()
	s.watch.Wait()
	return err
}
