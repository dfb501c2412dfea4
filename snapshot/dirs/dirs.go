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

	"github.com/lacuna-snapshotter/lacuna/internal/durable"
)

// Directories below the root. All lower directories of overlays are below snapshots:
// for a user namespace containerd clones their common parent with all mounts in it, and
// id-maps each of these mounts, which a transport's mount below the root may refuse, as
// FUSE does (core/mount/mount_linux.go, doPrepareIDMappedOverlay).
const (
	Snapshots  = "snapshots"
	Mounts     = Snapshots + "/" + MountsName
	MountsName = "m" // never a snapshot's ID, which is a number
	Layers     = "layers"
	New        = "new"
	Trash      = "trash"
)

// Dirs makes and removes directories below the root.
type Dirs struct {
	root     string
	inUse    func(dir string) bool
	emptying sync.Mutex

	mu     sync.Mutex
	making map[string]bool // directories below new that Temp has made
}

// Open makes the directories that are missing. inUse reports whether a directory or
// file in the trash must not be deleted yet. Only root may enter: a layer's mount shows
// an image's files with their set-user-ID bits (compare CVE-2021-41103).
func Open(root string, inUse func(dir string) bool) (*Dirs, error) {
	d := &Dirs{root: root, inUse: inUse, making: map[string]bool{}}
	for _, name := range []string{Snapshots, Layers, Mounts, New, Trash} {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(path, 0o700); err != nil {
			return nil, err
		}
		if err := os.Chmod(path, 0o700); err != nil { // an earlier version made it
			return nil, err
		}
	}
	return d, d.SweepNew()
}

// Root is the directory that all others are below.
func (d *Dirs) Root() string { return d.root }

// Temp makes a directory below new. done moves it to the trash, or what Install has
// left in its place.
func (d *Dirs) Temp() (path string, done func(), err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	path, err = os.MkdirTemp(filepath.Join(d.root, New), "")
	if err != nil {
		return "", nil, err
	}
	d.making[path] = true
	return path, func() {
		_ = d.Discard(path) // SweepNew tries again
		d.mu.Lock()
		defer d.mu.Unlock()
		delete(d.making, path)
	}, nil
}

// SweepNew moves to the trash what is below new and not being made.
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

// Install gives a directory of Temp its final name, durably. A directory that had the
// name takes the other's place, and goes to the trash with it.
func (d *Dirs) Install(temp, path string) error {
	if err := durable.SyncDir(temp); err != nil {
		return err
	}
	err := unix.Renameat2(unix.AT_FDCWD, temp, unix.AT_FDCWD, path, unix.RENAME_NOREPLACE)
	if errors.Is(err, unix.EEXIST) {
		err = unix.Renameat2(unix.AT_FDCWD, temp, unix.AT_FDCWD, path, unix.RENAME_EXCHANGE)
	}
	if err != nil {
		return &os.LinkError{Op: "rename", Old: temp, New: path, Err: err}
	}
	return durable.SyncDir(filepath.Dir(path))
}

// Discard moves a directory or file to the trash, where it exists, under a name that is
// never used twice: EmptyTrash asks once for each name whether it is in use.
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

// EmptyTrash deletes what is not in use any more.
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

// TrashInUse reports whether anything in the trash is in use.
func (d *Dirs) TrashInUse() bool {
	entries, err := os.ReadDir(filepath.Join(d.root, Trash))
	if err != nil {
		return true // it may be
	}
	for _, e := range entries {
		if d.inUse(filepath.Join(d.root, Trash, e.Name())) {
			return true
		}
	}
	return false
}
