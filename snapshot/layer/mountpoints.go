package layer

import (
	"errors"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/lacuna-snapshotter/lacuna/erofs"
	"github.com/lacuna-snapshotter/lacuna/snapshot/dirs"
)

// nameMountpoint picks the name of a layer's mountpoint: the first digits of its
// digest, as many as no other layer's mountpoint has, since the length of overlay's
// options is limited. A layer keeps its name.
func (l *Set) nameMountpoint(layer *Layer) string {
	if f := layer.files; f != nil && f.Mountpoint != "" {
		return f.Mountpoint
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	hex := layer.digest.Encoded()
	const least = 12
	for n := least; ; n++ {
		name := hex[:n]
		if owner, taken := l.mountpoints[name]; !taken || owner == layer.digest || n == len(hex) {
			l.mountpoints[name] = layer.digest
			return name
		}
	}
}

// makeMountpoint makes the directory of a mountpoint, where there is none. Anything
// else that has its name goes to the trash.
func (l *Set) makeMountpoint(path string) error {
	if err := l.clearMountpoint(path); err != nil {
		return err
	}
	return os.MkdirAll(path, 0o700)
}

// clearMountpoint moves what has a mountpoint's name and is no directory to the trash.
func (l *Set) clearMountpoint(path string) error {
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return nil
	case err != nil:
		return err
	case info.IsDir():
		return nil
	}
	l.Log.Warn("a mountpoint's name belongs to something that is no directory, which is removed", "path", path, "mode", info.Mode().String())
	return l.dirs.Discard(path)
}

// removeMountpoint removes a mountpoint and what is mounted there, and frees its name.
// The caller holds the lifecycle lock of the layer that has it, if any has.
func (l *Set) removeMountpoint(name string) error {
	path := filepath.Join(l.Root, dirs.Mounts, name)
	if err := l.clearMountpoint(path); err != nil {
		return err
	}
	if erofs.Mounted(path) {
		if err := erofs.Unmount(path); err != nil {
			return err
		}
	}
	if err := unix.Rmdir(path); err != nil && !errors.Is(err, unix.ENOENT) {
		return &os.PathError{Op: "rmdir", Path: path, Err: err}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.mountpoints, name)
	return nil
}
