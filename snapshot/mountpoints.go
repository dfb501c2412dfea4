package snapshot

import (
	"errors"
	"os"
	"path/filepath"

	"github.com/lacuna-snapshotter/lacuna/erofs"
)

// nameMountpoint picks a layer's mountpoint: so many digits of its digest as no
// other layer's mountpoint has, since overlay's options have little room.
func (l *Layers) nameMountpoint(layer *Layer) string {
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

// sweepMountpoints removes the mountpoints that no layer has.
func (l *Layers) sweepMountpoints() error {
	entries, err := os.ReadDir(filepath.Join(l.Root, mountsDir))
	if err != nil {
		return err
	}
	for _, e := range entries {
		path := filepath.Join(l.Root, mountsDir, e.Name())
		if _, owned := l.mountpoints[e.Name()]; owned {
			continue
		}
		if isEROFS(path) {
			err = errors.Join(err, erofs.Unmount(path))
		}
		if rmErr := os.Remove(path); rmErr != nil && !errors.Is(rmErr, os.ErrNotExist) {
			err = errors.Join(err, rmErr)
		}
	}
	return err
}
