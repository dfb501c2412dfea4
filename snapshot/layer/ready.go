package layer

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"github.com/lacuna-snapshotter/lacuna/erofs"
	"github.com/lacuna-snapshotter/lacuna/fetcher/index"
)

// Transitions to Ready. Every function here that takes a *Layer is called with its
// lifecycle lock held.

// makeTime bounds how long making one layer may take, the search for its index
// included.
const makeTime = time.Minute

// errStopping says that Stop was called.
var errStopping = errors.New("the daemon is stopping")

// Ensure makes a layer ready: mounted, its holes served. The layer stays ready until
// release is called.
func (l *Set) Ensure(ctx context.Context, t Target) (release func(), err error) {
	layer, err := l.lock(ctx, t.Layer)
	if err != nil {
		return nil, err
	}
	defer l.unlock(layer)
	fetchable := anyway
	if layer.state == Absent {
		fetchable = l.probes.start(l.ctx, t)
	}
	if err := l.ready(ctx, layer, t, fetchable); err != nil {
		return nil, err
	}
	l.fillPredicted(layer, t)
	return l.pin(layer), nil
}

// Mountpoint is where the files of a layer are that a snapshot stands for. A layer
// that is not ready is made so, unless it is quarantined and the pause after its last
// rebuild is not over.
func (l *Set) Mountpoint(ctx context.Context, t Target) (string, error) {
	layer, err := l.lock(ctx, t.Layer)
	if err != nil {
		return "", err
	}
	defer l.unlock(layer)
	if layer.state == Quarantined {
		if wait := l.untilRebuild(layer); wait > 0 {
			return "", fmt.Errorf("quarantined, the next rebuild is in %s: %w", wait.Round(time.Second), layer.err)
		}
	}
	if err := l.ready(ctx, layer, t, anyway); err != nil {
		return "", err
	}
	return layer.files.target, nil
}

// anyway is the fetchable of a layer that is wanted whether it can be fetched or not:
// what is filled can be read.
func anyway(context.Context) error { return nil }

// ready brings a layer to Ready from any state. Where its directory must be made,
// fetchable says whether the layer can be fetched at all. After an error the state is
// the one before, or Leaving, or Quarantined.
func (l *Set) ready(ctx context.Context, layer *Layer, t Target, fetchable func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, makeTime)
	defer cancel()
	defer context.AfterFunc(l.ctx, cancel)()
	if l.ctx.Err() != nil {
		return errStopping
	}
	switch {
	case layer.serving != nil: // ready or leaving
		return l.remount(layer)
	case layer.state == Evicted, layer.state == Leaving:
		err := l.open(layer, layer.files)
		if err == nil {
			l.fillPredicted(layer, layer.files.image())
			return nil
		}
		if layer.serving != nil { // it is leaving
			return err
		}
		l.quarantine(layer, layer.files, err)
	case layer.state == Quarantined && layer.files != nil:
		// The cause may be gone. The state on disk counts, not the one in memory: a
		// rebuild may have failed half way.
		f, err := readFiles(l.Root, filepath.Base(layer.files.dir))
		if err != nil {
			break
		}
		if err := l.open(layer, f); err == nil || layer.state != Quarantined {
			return err
		}
	}
	err := l.make(ctx, layer, t, fetchable)
	if err != nil && layer.state == Quarantined {
		l.become(layer, Quarantined, layer.files, nil, err)
		l.rebuildFailed(layer)
	}
	return err
}

// remount mounts a layer whose blob is open, where it is not mounted.
func (l *Set) remount(layer *Layer) error {
	if layer.files.mounted() && layer.state == Ready {
		l.touch(layer)
		return nil
	}
	if err := l.mount(layer.files, layer.serving.blob); err != nil {
		return fmt.Errorf("mount layer %s again: %w", layer.digest, err)
	}
	l.become(layer, Ready, layer.files, layer.serving, nil)
	return nil
}

// make finds an absent or quarantined layer's index, writes its directory and opens
// it.
func (l *Set) make(ctx context.Context, layer *Layer, t Target, fetchable func(context.Context) error) error {
	f, kept, err := write(l.dirs, t, l.nameMountpoint(layer), func(into *index.Store) (*index.Head, error) { return l.resolver.Find(ctx, index.Want(t), into) })
	if err != nil {
		return err
	}
	old := layer.files
	if err := l.use(ctx, layer, f, kept, fetchable); err != nil {
		if layer.files != f && (old == nil || old.dir != f.dir) {
			// The layer may yet be opened from its old directory, and the next daemon
			// would take this one, which is the later.
			err = errors.Join(err, l.dirs.Discard(f.dir))
		}
		return err
	}
	l.Log.Info("layer mounted", "layer", layer.digest, "image", t.Ref, "mountpoint", f.target)
	if old != nil && old.dir != f.dir {
		if err := l.dirs.Discard(old.dir); err != nil {
			l.Log.Error("the old directory of a rebuilt layer could not be removed", "layer", layer.digest, "dir", old.dir, "error", err)
		}
	}
	return nil
}

// use opens a layer from a directory that was written for it.
func (l *Set) use(ctx context.Context, layer *Layer, f *files, kept bool, fetchable func(context.Context) error) error {
	if !kept && f.mounted() {
		// The mount is of other files. The processes that use it keep it.
		if err := erofs.Unmount(f.target); err != nil {
			return err
		}
	}
	if err := fetchable(ctx); err != nil {
		return fmt.Errorf("layer %s cannot be fetched: %w", layer.digest, err)
	}
	return l.open(layer, f)
}
