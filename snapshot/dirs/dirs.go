// Package dirs is the layout of the snapshotter's root directory. A name leads to a
// whole directory or to none, whenever the daemon dies or the power fails.
//
//	<root>/snapshots/<id>/      files of an ordinary snapshot
//	<root>/snapshots/m/<hex>/   mountpoint of a layer; short, since the length of
//	                            overlay's options is limited
//	<root>/layers/<name>/       files of a layer
//	<root>/new/                 directories that are being made
//	<root>/trash/               directories that no name leads to any more
//
// A directory is made below new, synced, and renamed to its place. It is removed by a
// rename to trash and deleted there when its files are not in use. Open moves what it
// finds below new to trash: an earlier run did not finish it.
package dirs

import (
	"crypto/rand"
	"errors"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"
)

// Directories below the root. Whatever an overlay may have as a lower directory
// is below snapshots: for a user namespace containerd clones the directory that
// they have in common with all mounts in it, and maps each of these, which a mount of
// a transport's below the root may refuse as FUSE does
// (core/mount/mount_linux.go, doPrepareIDMappedOverlay).
const (
	Snapshots  = "snapshots"
	Mounts     = Snapshots + "/" + MountsName
	MountsName = "m" // never a snapshot's ID, which is a number
	Layers     = "layers"
	New        = "new"
	Trash      = "trash"
)

// Dirs makes and takes away directories below the root so that each name leads
// to a whole one or to none.
type Dirs struct {
	root     string
	inUse    func(dir string) bool
	emptying sync.Mutex

	mu     sync.Mutex
	making map[string]bool // directories below new that are in use
}

// openDirs makes what is missing and takes away what an earlier run was making.
// Nothing below the root is for anybody but root: a layer's mount shows an image's
// files with their set-user-ID bits (compare CVE-2021-41103).
func Open(root string, inUse func(dir string) bool) (*Dirs, error) {
	d := &Dirs{root: root, inUse: inUse, making: map[string]bool{}}
	for _, name := range []string{Snapshots, Layers, Mounts, New, Trash} {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(path, 0o700); err != nil {
			return nil, err
		}
		if err := os.Chmod(path, 0o700); err != nil { // of an earlier version
			return nil, err
		}
	}
	return d, d.SweepNew()
}

// Root is the directory that all others are below.
func (d *Dirs) Root() string { return d.root }

// Temp makes a directory below new. When done is called, what of it has not been
// installed goes to the trash.
func (d *Dirs) Temp() (path string, done func(), err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	path, err = os.MkdirTemp(filepath.Join(d.root, New), "")
	if err != nil {
		return "", nil, err
	}
	d.making[path] = true
	return path, func() {
		_ = d.Discard(path) // SweepNew comes again
		d.mu.Lock()
		defer d.mu.Unlock()
		delete(d.making, path)
	}, nil
}

// SweepNew takes away what was being made by an earlier run, or could not be taken
// away before.
func (d *Dirs) SweepNew() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	entries, err := os.ReadDir(filepath.Join(d.root, New))
	for _, e := range entries {
		if path := filepath.Join(d.root, New, e.Name()); !d.making[path] {
			err = errors.Join(err, d.Discard(path))
		}
	}
	return err
}

// install gives a directory of temp its name, for good. What had the name goes to
// the trash.
func (d *Dirs) Install(temp, path string) error {
	if err := Sync(temp); err != nil {
		return err
	}
	err := unix.Renameat2(unix.AT_FDCWD, temp, unix.AT_FDCWD, path, unix.RENAME_NOREPLACE)
	if errors.Is(err, unix.EEXIST) {
		// The old one is discarded as what is left of temp.
		err = unix.Renameat2(unix.AT_FDCWD, temp, unix.AT_FDCWD, path, unix.RENAME_EXCHANGE)
	}
	if err != nil {
		return &os.LinkError{Op: "rename", Old: temp, New: path, Err: err}
	}
	return Sync(filepath.Dir(path))
}

// discard moves a directory, if there is one, to the trash, under a name that
// nothing has: EmptyTrash looks at each name once before it deletes.
func (d *Dirs) Discard(path string) error {
	for {
		to := filepath.Join(d.root, Trash, rand.Text())
		err := unix.Renameat2(unix.AT_FDCWD, path, unix.AT_FDCWD, to, unix.RENAME_NOREPLACE)
		switch {
		case errors.Is(err, unix.EEXIST):
			continue
		case err == nil, errors.Is(err, unix.ENOENT):
			return nil
		}
		return &os.LinkError{Op: "rename", Old: path, New: to, Err: err}
	}
}

// EmptyTrash deletes what nobody can reach any more.
func (d *Dirs) EmptyTrash() error {
	d.emptying.Lock()
	defer d.emptying.Unlock()
	entries, err := os.ReadDir(filepath.Join(d.root, Trash))
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range entries {
		dir := filepath.Join(d.root, Trash, e.Name())
		if !d.inUse(dir) {
			errs = append(errs, os.RemoveAll(dir))
		}
	}
	return errors.Join(errs...)
}

// TrashInUse reports whether somebody can reach a layer that is in the trash.
func (d *Dirs) TrashInUse() bool {
	entries, err := os.ReadDir(filepath.Join(d.root, Trash))
	if err != nil {
		return true // nobody knows
	}
	for _, e := range entries {
		if d.inUse(filepath.Join(d.root, Trash, e.Name())) {
			return true
		}
	}
	return false
}

// Sync makes the names in a directory durable.
func Sync(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
