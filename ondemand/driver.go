package ondemand

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"syscall"

	"github.com/lacuna-snapshotter/lacuna/internal/descriptor"
)

// Holder holds duplicates of descriptors for the next daemon: see package hold.
type Holder interface {
	Hold(label string, fd int) error
	// Release has it forget a label. After an error it may hold the label still.
	Release(label string) error
}

// Adopted are the descriptors that holders have held for this daemon, by label.
type Adopted map[string]*os.File

// Take removes and returns what was held under a label, nil where nothing was. The
// file is the caller's.
func (a Adopted) Take(label string) *os.File {
	f := a[label]
	delete(a, label)
	return f
}

// Node is what a transport is opened in.
type Node struct {
	Engine *Engine
	Holder Holder
	Log    *slog.Logger
}

// Driver opens the transport of one kind.
type Driver interface {
	// Name is the transport's name in configuration and logs.
	Name() string
	// Labels are the labels of the descriptors that are held when a transport is
	// opened, in the order in which they are held: what readers wait on comes last.
	Labels() []string
	// Adopts reports whether what was held is enough to serve the mounts of an
	// earlier daemon.
	Adopts(a Adopted) bool
	// Idle reports whether no mount needs what was held, false where the driver cannot
	// tell. Adopts is true.
	Idle(a Adopted) bool
	// Adopt serves the mounts of an earlier daemon. It takes what is its own from
	// what was held, which is held on. Adopts is true.
	Adopt(n Node, a Adopted) (Transport, error)
	// Open opens a new transport, for which nothing is held yet. It returns the
	// descriptors that belong under Labels, or none where the transport cannot
	// outlive the daemon. After an error nothing of it is left.
	Open(n Node) (Transport, []syscall.Conn, error)
}

// Drivers are the kinds of transport in the order in which Auto tries them.
type Drivers []Driver

// Auto is the configuration's name for the first transport that can be used.
const Auto = "auto"

// Opened is a transport that serves, and how it came to be.
type Opened struct {
	Transport  Transport
	Labels     []string // of what is held for the next daemon
	Adopted    bool     // it serves the mounts of an earlier daemon
	PassedOver []error  // why each of the drivers before it was not used
}

// Adopt serves what an earlier daemon left, nil where that is not enough for any
// driver. What cannot be used is released: readers of a device that no daemon reads
// would wait for ever. Want is a driver's name or Auto; an earlier daemon's transport
// of another kind is an error if it is not idle.
func (l Drivers) Adopt(want string, n Node, a Adopted) (*Opened, error) {
	d, useless := l.choose(want, a)
	if d != nil && want != Auto && want != d.Name() {
		return nil, fmt.Errorf("layers are mounted with transport %s, the configuration says %s: keep it, or remove the containers and images first", d.Name(), want)
	}
	for _, u := range useless {
		if err := release(n.Holder, a, u.Labels()); err != nil {
			return nil, err
		}
	}
	if d == nil {
		releaseRest(n, a)
		return nil, nil
	}
	n.Log.Info("adopting an earlier daemon's transport", "transport", d.Name())
	t, err := d.Adopt(n, a)
	if err != nil {
		return nil, fmt.Errorf("adopt transport %s: %w", d.Name(), err)
	}
	for label := range a {
		n.Log.Warn("a descriptor is held on that this transport does not use: mounts of another may need it", "label", label, "error", a.Take(label).Close())
	}
	return &Opened{Transport: t, Labels: d.Labels(), Adopted: true}, nil
}

// choose returns the driver that adopts, nil where none does, and those whose
// descriptors are of no use. There may be two that could: a start that failed, of a
// build that did not release what it held, has left a transport beside the one that has
// mounts.
func (l Drivers) choose(want string, a Adopted) (chosen Driver, useless []Driver) {
	var idle []Driver
	for _, d := range l {
		switch {
		case !d.Adopts(a):
			useless = append(useless, d)
		case d.Idle(a):
			idle = append(idle, d)
		case chosen == nil:
			chosen = d
		} // else it has mounts too, and is held on
	}
	for _, d := range idle {
		if chosen == nil && (want == Auto || want == d.Name()) {
			chosen = d
		} else {
			useless = append(useless, d)
		}
	}
	return chosen, useless
}

// releaseRest releases what is of no use without what was released before it, such as
// cachefiles' objects whose device is lost.
func releaseRest(n Node, a Adopted) {
	for label := range a {
		n.Log.Warn("a descriptor of an earlier daemon has no use and is released", "label", label, "error", release(n.Holder, a, []string{label}))
	}
}

// Open opens the first transport that can be used, and has it held. Want is a
// driver's name or Auto.
func (l Drivers) Open(want string, n Node) (*Opened, error) {
	var reasons []error
	for _, d := range l {
		if want != Auto && want != d.Name() {
			continue
		}
		t, err := open(d, n)
		if errors.Is(err, errHeld) {
			return nil, err
		}
		if err != nil {
			reasons = append(reasons, fmt.Errorf("transport %s cannot be used: %w", d.Name(), err))
			continue
		}
		for _, reason := range reasons {
			n.Log.Info("passed over a transport", "chosen", d.Name(), "reason", reason)
		}
		return &Opened{Transport: t, Labels: d.Labels(), PassedOver: reasons}, nil
	}
	return nil, errors.Join(reasons...)
}

// errHeld says that a transport which is not used may still be held. The next daemon
// would adopt it, in place of the one that has mounts.
var errHeld = errors.New("descriptors of a transport that is not used are held")

// open holds a transport's descriptors when it serves, not before: a daemon that dies
// while it opens a transport which cannot be used leaves nothing for the next one to
// adopt. It serves no mount yet.
func open(d Driver, n Node) (Transport, error) {
	t, files, err := d.Open(n)
	if err != nil {
		return nil, err
	}
	for i, f := range files {
		label := d.Labels()[i]
		if err = descriptor.Use(f, func(fd int) error { return n.Holder.Hold(label, fd) }); err != nil {
			err = fmt.Errorf("hold %s: %w", label, err)
			break
		}
	}
	if err == nil {
		return t, nil
	}
	// First what the next daemon may adopt: the labels, what readers wait on first.
	if held := release(n.Holder, nil, d.Labels()); held != nil {
		err = fmt.Errorf("%w: transport %s: %w", errHeld, d.Name(), errors.Join(err, held))
	}
	t.Recover() // there are no mounts to wait for
	return nil, errors.Join(err, t.Close())
}

// release closes what was held under labels, and has it held no more. It begins with
// the last label, without which the others are of no use.
func release(h Holder, a Adopted, labels []string) error {
	var errs []error
	for _, label := range slices.Backward(labels) {
		f := a.Take(label)
		if f != nil {
			errs = append(errs, f.Close())
		}
		if f != nil || a == nil {
			errs = append(errs, h.Release(label))
		}
	}
	return errors.Join(errs...)
}
