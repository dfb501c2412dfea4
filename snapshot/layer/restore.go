package layer

import (
	"context"
	"errors"
	"os"
	"path/filepath"

	"github.com/opencontainers/go-digest"

	"github.com/lacuna-snapshotter/lacuna/snapshot/dirs"
)

// errMissing quarantines a layer that a snapshot stands for and that has no directory.
var errMissing = errors.New("its directory is missing")

// restore opens the layers of an earlier run. One that cannot be opened is quarantined
// and does not stop the others; so is one that snapshots stand for and that has no
// directory.
func (l *Set) restore(ctx context.Context) error {
	uses, err := l.uses(ctx)
	if err != nil {
		return err
	}
	found, broken, err := l.readAll()
	if err != nil {
		return err
	}
	for d, f := range found {
		l.mountpoints[f.Mountpoint] = d
	}
	for d, f := range found {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		err := l.with(ctx, d, func(layer *Layer) error {
			if err := l.open(layer, f); err != nil && layer.state != Leaving {
				l.quarantine(layer, f, err)
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	for d, b := range broken {
		if err := l.with(ctx, d, func(layer *Layer) error { l.quarantine(layer, b.files, b.err); return nil }); err != nil {
			return err
		}
	}
	for d, u := range uses {
		if _, ok := l.view(d); ok || !u.Needed {
			continue
		}
		if err := l.with(ctx, d, func(layer *Layer) error { l.quarantine(layer, nil, errMissing); return nil }); err != nil {
			return err
		}
	}
	if err := l.sweepMountpoints(ctx); err != nil {
		l.Log.Error("mountpoints that no layer has could not be removed; the next cleanup tries again", "error", err)
	}
	return nil
}

// brokenFiles is a directory whose state cannot be used.
type brokenFiles struct {
	files *files
	err   error
}

// readAll reads the directories of all layers. Of two directories of one layer one
// counts, see later: the daemon died before it had removed the other. A layer is in
// broken only where none of its directories can be used.
func (l *Set) readAll() (found map[digest.Digest]*files, broken map[digest.Digest]brokenFiles, err error) {
	entries, err := os.ReadDir(filepath.Join(l.Root, dirs.Layers))
	if err != nil {
		return nil, nil, err
	}
	found, broken = map[digest.Digest]*files{}, map[digest.Digest]brokenFiles{}
	for _, e := range entries {
		f, err := readFiles(l.Root, e.Name())
		switch {
		case !Indexable(f.Layer):
			l.Log.Error("a directory that is no layer's goes to the trash", "dir", f.dir, "error", err)
			err = l.dirs.Discard(f.dir)
		case err != nil:
			broken[f.Layer] = brokenFiles{f, err}
			err = nil
		case found[f.Layer] == nil:
			found[f.Layer] = f
		default:
			earlier := found[f.Layer]
			if later(earlier, f) {
				earlier, f = f, earlier
			}
			found[f.Layer] = f
			err = l.dirs.Discard(earlier.dir)
		}
		if err != nil {
			return nil, nil, err
		}
	}
	for d, b := range broken {
		if found[d] != nil {
			delete(broken, d)
			if err := l.dirs.Discard(b.files.dir); err != nil {
				return nil, nil, err
			}
		}
	}
	return found, broken, nil
}

// later reports whether a counts, and not b, two directories of one layer: the one whose
// file system is in use, since the mountpoint, which they share, shows none but that;
// otherwise the one that was written later. Directories of a version without generations
// have 0.
func later(a, b *files) bool {
	if usedA, usedB := reachable(a.dir), reachable(b.dir); usedA != usedB {
		return usedA
	}
	return a.Generation > b.Generation
}
