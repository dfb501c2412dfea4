package snapshot

import (
	"crypto/rand"
	"errors"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/lacuna-snapshotter/lacuna/erofs"
	"github.com/lacuna-snapshotter/lacuna/internal/durable"
)

// Directories below the root. Whatever an overlay may have as a lower directory
// is below snapshots: for a user namespace containerd clones the directory that
// they have in common with all mounts in it, and maps each of these, which a mount of
// a transport's below the root may refuse as FUSE does
// (core/mount/mount_linux.go, doPrepareIDMappedOverlay).
const (
	snapshotsDir = "snapshots"
	mountsDir    = snapshotsDir + "/" + mountsName
	mountsName   = "m" // never a snapshot's ID, which is a number
	layersDir    = "layers"
	newDir       = "new"
	trashDir     = "trash"
)

// dirs makes and takes away directories below the root so that each name leads
// to a whole one or to none.
type dirs struct {
	root     string
	emptying sync.Mutex

	mu     sync.Mutex
	making map[string]bool // directories below new that are in use
}

// openDirs makes what is missing and takes away what an earlier run was making.
// Nothing below the root is for anybody but root: a layer's mount shows an image's
// files with their set-user-ID bits (compare CVE-2021-41103).
func openDirs(root string) (*dirs, error) {
	d := &dirs{root: root, making: map[string]bool{}}
	for _, name := range []string{snapshotsDir, layersDir, mountsDir, newDir, trashDir} {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(path, 0o700); err != nil {
			return nil, err
		}
		if err := os.Chmod(path, 0o700); err != nil { // of an earlier version
			return nil, err
		}
	}
	return d, d.sweepNew()
}

// temp makes a directory below new. When done is called, what of it has not been
// installed goes to the trash.
func (d *dirs) temp() (path string, done func(), err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	path, err = os.MkdirTemp(filepath.Join(d.root, newDir), "")
	if err != nil {
		return "", nil, err
	}
	d.making[path] = true
	return path, func() {
		_ = d.discard(path) // sweepNew comes again
		d.mu.Lock()
		defer d.mu.Unlock()
		delete(d.making, path)
	}, nil
}

// sweepNew takes away what was being made by an earlier run, or could not be taken
// away before.
func (d *dirs) sweepNew() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	entries, err := os.ReadDir(filepath.Join(d.root, newDir))
	for _, e := range entries {
		if path := filepath.Join(d.root, newDir, e.Name()); !d.making[path] {
			err = errors.Join(err, d.discard(path))
		}
	}
	return err
}

// install gives a directory of temp its name, for good. What had the name goes to
// the trash.
func (d *dirs) install(temp, path string) error {
	if err := durable.SyncDir(temp); err != nil {
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
	return durable.SyncDir(filepath.Dir(path))
}

// discard moves a directory, if there is one, to the trash, under a name that
// nothing has: emptyTrash looks at each name once before it deletes.
func (d *dirs) discard(path string) error {
	for {
		to := filepath.Join(d.root, trashDir, rand.Text())
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

// emptyTrash deletes what nobody can reach any more.
func (d *dirs) emptyTrash() error {
	d.emptying.Lock()
	defer d.emptying.Unlock()
	entries, err := os.ReadDir(filepath.Join(d.root, trashDir))
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range entries {
		dir := filepath.Join(d.root, trashDir, e.Name())
		if !reachable(dir) {
			errs = append(errs, os.RemoveAll(dir))
		}
	}
	return errors.Join(errs...)
}

// trashReachable reports whether somebody can reach a layer that is in the trash.
func (d *dirs) trashReachable() bool {
	entries, err := os.ReadDir(filepath.Join(d.root, trashDir))
	if err != nil {
		return true // nobody knows
	}
	for _, e := range entries {
		if reachable(filepath.Join(d.root, trashDir, e.Name())) {
			return true
		}
	}
	return false
}

// reachable reports whether a file system of a layer's directory may be mounted
// anywhere. The caller has no file of it open.
func reachable(dir string) bool {
	for _, name := range []string{"bootstrap", "blob"} {
		path := filepath.Join(dir, name)
		info, err := os.Lstat(path)
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ENOTDIR) || err == nil && !info.Mode().IsRegular() {
			continue
		}
		if used, err := erofs.InUse(path); used && !errors.Is(err, os.ErrNotExist) {
			return true
		}
	}
	return false
}
