package fuse

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"sync"
)

// loops are the loop devices of mounts: those that read a blob's file in the
// session, and those that have been changed to its cache file.
type loops struct {
	change func(device, from, to string, sparse bool) error
	ctx    context.Context // ends when we take no more requests

	mu      sync.Mutex
	devices map[string][]string // by the path of the file that they read
}

func (l *loops) add(path, device string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.devices[path] = append(l.devices[path], device)
}

// reads reports whether any device reads the file.
func (l *loops) reads(path string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.devices[path]) > 0
}

// below reports whether any device reads a file of a directory.
func (l *loops) below(dir string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	for path, devices := range l.devices {
		if len(devices) > 0 && filepath.Dir(path) == dir {
			return true
		}
	}
	return false
}

// forget forgets devices that are gone with their mounts.
func (l *loops) forget(paths ...string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, path := range paths {
		delete(l.devices, path)
	}
}

// move has all devices that read one file read another, which may have the same
// path in a later session. Sparse says that the other has holes. Where reads are
// under way that we do not answer any more, the change goes on without us.
func (l *loops) move(from, to string, sparse bool) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, device := range slices.Clone(l.devices[from]) {
		changed := make(chan error, 1)
		go func() { changed <- l.change(device, from, to, sparse) }()
		select {
		case err := <-changed:
			if err != nil {
				return err
			}
		case <-l.ctx.Done():
			return fmt.Errorf("%s reads %s until the next daemon answers what it waits for", device, from)
		}
		l.devices[from] = slices.DeleteFunc(l.devices[from], func(d string) bool { return d == device })
		l.devices[to] = append(l.devices[to], device)
	}
	return nil
}
