package socket

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"slices"
	"strings"
	"time"
)

// labelPrefix begins the labels of sockets; their path follows.
const labelPrefix = "socket "

// Label is the label under which the socket at a path is held.
func Label(path string) string { return labelPrefix + path }

// Listeners are the sockets of a daemon.
type Listeners []*Listener

// Open opens sockets at paths for the daemon of a root directory. It takes what has
// been held of sockets from adopted, and releases that of other paths.
func Open(root string, h Holder, adopted map[string]*os.File, paths ...string) (list Listeners, err error) {
	for label, f := range adopted {
		path, ok := strings.CutPrefix(label, labelPrefix)
		if !ok || slices.Contains(paths, path) {
			continue
		}
		delete(adopted, label)
		if err := errors.Join(h.Release(label), f.Close()); err != nil {
			return nil, err
		}
	}
	for _, path := range paths {
		held := adopted[Label(path)]
		delete(adopted, Label(path))
		l, err := open(path, root, h, held)
		if err != nil {
			err = errors.Join(err, list.Close())
			list.Unlock()
			return nil, err
		}
		list = append(list, l)
	}
	return list, nil
}

// Labels are the labels under which the sockets are held.
func (s Listeners) Labels() (list []string) {
	for _, l := range s {
		list = append(list, Label(l.path))
	}
	return list
}

// Close closes all; the holders' duplicates stay.
func (s Listeners) Close() error {
	var errs []error
	for _, l := range s {
		errs = append(errs, l.Close())
	}
	return errors.Join(errs...)
}

// Unlock lets another daemon have the paths.
func (s Listeners) Unlock() {
	for _, l := range s {
		l.lock.Unlock()
	}
}

// Remove unlinks the paths of sockets that are not held any more.
func (s Listeners) Remove() error {
	var errs []error
	for _, l := range s {
		errs = append(errs, l.remove())
	}
	return errors.Join(errs...)
}

// lookEvery is how often Watch looks at the paths.
const lookEvery = 2 * time.Second

// Watch creates sockets again whose path was removed, as programs that clean
// directories do, until ctx ends. Where another file is at the path it only logs.
func (s Listeners) Watch(ctx context.Context, log *slog.Logger) {
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		for _, l := range s {
			l.look(log)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}
