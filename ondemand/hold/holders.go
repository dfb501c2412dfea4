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

// Holders are all holders of a daemon, which hold the same.
type Holders struct {
	dir     string
	program Program
	log     *slog.Logger

	mu       sync.Mutex
	keepers  []*keeper       // nil where one is missing
	silent   []*keeper       // that count as dead and are not replaced yet, each in its place
	manager  *serviceManager // nil where no service manager has started the daemon
	anchors  *anchors        // nil where there can be none
	noAnchor error           // why
	anchored bool            // by an anchor of this daemon
	own      shelf[int]      // the daemon's own duplicates, for holders to come
	leaving  bool
	left     chan struct{} // closed when the daemon is leaving
	watch    sync.WaitGroup
}

// Program is the command lines of this binary that lead to RunKeeper and RunAnchor.
type Program struct{ Keeper, Anchor []string }

// Adopt connects to the holders of a directory and starts those of count keepers that
// are missing. It returns what the holders hold by label, nil where they hold nothing.
// The files are the caller's; the holders go on to hold the same under their labels.
func Adopt(dir string, count int, program Program, log *slog.Logger) (_ *Holders, adopted map[string]*os.File, err error) {
	h := &Holders{dir: dir, program: program, log: log, keepers: make([]*keeper, count), silent: make([]*keeper, count), left: make(chan struct{})}
	if h.manager, err = openManager(); err != nil {
		log.Warn("the service manager's descriptor store cannot be used", "error", err)
	}
	if h.manager != nil {
		if adopted, err = h.adoptFrom(h.manager, adopted); err != nil {
			return nil, nil, err
		}
	}
	for i := range h.keepers {
		k, err := connect(h.socket(i))
		if errors.Is(err, errNone) {
			continue
		}
		if err == nil {
			adopted, err = h.adoptFrom(k, adopted)
		}
		var own *ownError
		if errors.As(err, &own) {
			return nil, nil, err
		}
		if err != nil {
			log.Warn("a keeper does not answer; it is replaced", "socket", h.socket(i), "error", err)
			if k != nil {
				_ = k.leave() // what it holds may be all there is
			}
			continue
		}
		h.keepers[i] = k
	}
	if h.anchors, h.noAnchor = openAnchors(dir, program.Anchor); h.anchors != nil {
		adopted, err = h.adoptFrom(h.anchors, adopted)
		var own *ownError
		if errors.As(err, &own) {
			return nil, nil, err
		}
		if err != nil {
			log.Warn("what an anchor holds could not be adopted", "error", err)
		}
	}
	if err := h.complete(); err != nil {
		return nil, nil, err
	}
	return h, adopted, nil
}

// ownError says that this process, and no holder, could not do something.
type ownError struct{ error }

func (e *ownError) Unwrap() error { return e.error }

// adoptFrom adds what one holder holds, and was not adopted from another.
func (h *Holders) adoptFrom(one holder, adopted map[string]*os.File) (map[string]*os.File, error) {
	list, err := one.adopt()
	if adopted == nil && len(list) > 0 {
		adopted = map[string]*os.File{}
	}
	for _, d := range list {
		if adopted[d.label] != nil {
			d.file.Close()
			continue
		}
		adopted[d.label] = d.file
		if err := descriptor.Use(d.file, func(fd int) error { return h.keepOwn(d.label, fd) }); err != nil {
			return adopted, &ownError{err}
		}
	}
	return adopted, err
}

func (h *Holders) socket(i int) string { return filepath.Join(h.dir, fmt.Sprintf("keeper%d.sock", i)) }

// keepOwn duplicates a descriptor for holders to come.
func (h *Holders) keepOwn(label string, fd int) error {
	own, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("hold %s: %w", label, err)
	}
	if old, replaced := h.own.put(label, own); replaced {
		unix.Close(old)
	}
	return nil
}

// Hold has every holder hold a duplicate of a descriptor. The anchor does so when it
// is started: see Anchor.
func (h *Holders) Hold(label string, fd int) error {
	if len(label) > maxLabel {
		return errLabel
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if err := h.keepOwn(label, fd); err != nil {
		return err
	}
	if h.manager != nil {
		if err := h.manager.hold(label, fd); err != nil && !errors.Is(err, errName) {
			h.log.Warn("the service manager does not hold a descriptor", "label", label, "error", err)
		}
	}
	return h.eachKeeper(func(k *keeper) error { return k.hold(label, fd) })
}

// HoldFile is Hold for a file or a socket.
func (h *Holders) HoldFile(label string, f syscall.Conn) error {
	return descriptor.Use(f, func(fd int) error { return h.Hold(label, fd) })
}

// Release has every holder release a label, but the anchor, which holds what it was
// started with until the next one is started. After an error a holder may hold it
// still, and the next daemon adopt it.
func (h *Holders) Release(label string) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if own, ok := h.own.remove(label); ok {
		unix.Close(own)
	}
	var err error
	if h.manager != nil {
		err = h.manager.release(label)
	}
	err = errors.Join(err, h.eachKeeper(func(k *keeper) error { return k.release(label) }))
	if err != nil {
		return fmt.Errorf("release %s: %w", label, err)
	}
	return nil
}

// eachKeeper calls f for every keeper. A dead one is replaced by one that is given
// what is held by then, so its death is no error.
func (h *Holders) eachKeeper(f func(*keeper) error) error {
	var errs []error
	for _, k := range h.keepers {
		if k == nil {
			continue
		}
		if err := f(k); err != nil && !errors.Is(err, errDead) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// Keepers is how many keepers live.
func (h *Holders) Keepers() (n int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, k := range h.keepers {
		if k != nil && k.alive() {
			n++
		}
	}
	return n
}

// Leave ends the daemon's use of the holders, which hold on for the next daemon.
func (h *Holders) Leave() error { return h.stop(holder.leave) }

// ReleaseAll has the holders release everything, and ends those that are processes.
// Nothing may need them any more.
func (h *Holders) ReleaseAll() error {
	err := h.stop(holder.end)
	for i := range h.keepers {
		if rmErr := os.Remove(h.socket(i)); rmErr != nil && !errors.Is(rmErr, os.ErrNotExist) {
			err = errors.Join(err, rmErr)
		}
	}
	return err
}

// stop ends the use of all holders. Keepers that die from now on are not replaced.
func (h *Holders) stop(how func(holder) error) error {
	h.mu.Lock()
	if !h.leaving {
		h.leaving = true
		close(h.left)
	}
	if h.anchors != nil {
		if err := how(h.anchors); err != nil {
			h.log.Warn("an anchor could not be ended", "error", err)
		}
		h.anchors, h.noAnchor = nil, errLeaving
	}
	if h.manager != nil {
		if err := how(h.manager); err != nil {
			h.log.Warn("the service manager did not release its descriptors", "error", err)
		}
		h.manager = nil
	}
	err := h.eachKeeper(func(k *keeper) error { return how(k) })
	for i, k := range h.silent {
		if k != nil {
			_ = how(k) // it is dead
		}
		h.silent[i] = nil
	}
	for _, own := range h.own {
		unix.Close(own.thing)
	}
	h.own = nil
	h.mu.Unlock()
	h.watch.Wait()
	return err
}
