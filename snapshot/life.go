package snapshot

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/lacuna-snapshotter/lacuna/erofs"
	"github.com/lacuna-snapshotter/lacuna/fetcher/index"
	"github.com/lacuna-snapshotter/lacuna/ondemand"
)

// The transitions of a layer. Every function here that takes a *Layer is called
// with its lifecycle lock held. Those that fail leave the state that they name.

// makeTime bounds how long making one layer may take, with its index to be found.
const makeTime = time.Minute

// Ensure makes a layer ready: mounted, its holes served. It stays so until release
// is called.
func (l *Layers) Ensure(ctx context.Context, t Target) (release func(), err error) {
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

// errStopping says that Stop was called.
var errStopping = errors.New("the daemon is stopping")

// ready brings a layer to Ready from any state. A layer that is made anew needs
// what fetchable says: whether it can be fetched at all.
func (l *Layers) ready(ctx context.Context, layer *Layer, t Target, fetchable func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, makeTime)
	defer cancel()
	defer context.AfterFunc(l.ctx, cancel)()
	if l.ctx.Err() != nil {
		return errStopping
	}
	switch {
	case layer.serving != nil: // ready or leaving
		if layer.files.mounted() && layer.state == Ready {
			l.touch(layer)
			return nil
		}
		if err := l.mount(layer.files, layer.serving.blob); err != nil {
			return fmt.Errorf("mount layer %s again: %w", layer.digest, err)
		}
		l.become(layer, Ready, layer.files, layer.serving, nil)
		return nil
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
		// What was in the way may be gone. What is on the disk counts: making it may
		// have failed half way.
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
		l.mu.Lock()
		layer.retry.failed()
		l.mu.Unlock()
	}
	return err
}

// make finds an absent or quarantined layer's index, writes its directory and
// opens it.
func (l *Layers) make(ctx context.Context, layer *Layer, t Target, fetchable func(context.Context) error) error {
	f, kept, err := write(l.dirs, t, l.nameMountpoint(layer), func(into *index.Store) (*index.Head, error) { return l.resolver.Find(ctx, index.Want(t), into) })
	if err != nil {
		return err
	}
	old := layer.files
	if !kept && f.mounted() {
		// Of other files. Whoever uses it goes on to.
		if err := erofs.Unmount(f.target); err != nil {
			return err
		}
	}
	if err := fetchable(ctx); err != nil {
		return errors.Join(fmt.Errorf("layer %s cannot be fetched: %w", t.Layer, err), l.dirs.discard(f.dir))
	}
	if err := l.open(layer, f); err != nil {
		if layer.state == Absent {
			err = errors.Join(err, l.dirs.discard(f.dir))
		}
		return err
	}
	l.Log.Info("layer is mounted", "layer", layer.digest, "image", t.Ref, "mountpoint", f.target)
	if old != nil && old.dir != f.dir {
		if err := l.dirs.discard(old.dir); err != nil {
			l.Log.Error("remove a replaced layer's directory", "dir", old.dir, "error", err)
		}
	}
	return nil
}

// open opens a written layer and makes it Ready, in the order that lets no hole be
// read: blob, attach, mount.
func (l *Layers) open(layer *Layer, f *files) error {
	own, err := index.OpenStore(f.dir)
	if err != nil {
		return err
	}
	// Without its index no hole could ever be filled, and without its bootstrap
	// nobody could ever tell that it is not in use.
	if err := errors.Join(regular(f.path("bootstrap")), regular(own.Path(f.Layer))); err != nil {
		return err
	}
	source := newLayerSource(&ownIndex{f.layerState, own, l.Client, l.resolver, l.dirs.temp, l.Log})
	store, err := l.Transport.Store(f.key(), f.BlobSize, f.SpanSize)
	if err != nil {
		return err
	}
	fresh := store == nil && regular(f.path("blob")) != nil
	config := ondemand.BlobConfig{
		Key: f.key(), Path: f.path("blob"), Size: f.BlobSize, SpanSize: f.SpanSize,
		Source: source, Group: registryOf(f.Ref), Store: store,
	}
	blob, err := l.Engine.Open(config)
	var foreign *ondemand.ForeignFileError
	if errors.As(err, &foreign) {
		fresh = true
		if err = f.discardBlob(l.dirs); err == nil {
			blob, err = l.Engine.Open(config)
		}
	}
	if err != nil {
		return err
	}
	if err := l.Transport.Attach(blob, f.path("bootstrap")); err != nil {
		return errors.Join(err, blob.Close())
	}
	on := &serving{blob: blob, source: source, gone: make(chan struct{})}
	err = nil
	if fresh && f.mounted() { // of a file that is not the blob any more
		err = erofs.Unmount(f.target)
	}
	if err == nil {
		err = l.mount(f, blob)
	}
	if err != nil {
		if detachErr := l.Transport.Detach(blob); detachErr != nil {
			// An earlier mount that could not be replaced, or nobody knows.
			l.become(layer, Leaving, f, on, nil)
			l.start(func() { l.watch(layer, on) }) // it may be mounted again
			return errors.Join(err, detachErr)
		}
		return errors.Join(err, blob.Close())
	}
	l.become(layer, Ready, f, on, nil)
	l.fallbacks.drop(layer.digest)
	l.start(func() { l.watch(layer, on) })
	return nil
}

// mount mounts a layer, unless an earlier daemon's mount goes on.
func (l *Layers) mount(f *files, blob *ondemand.Blob) error {
	if f.mounted() {
		kept, err := l.keep(f, blob)
		if kept || err != nil {
			return err
		}
	}
	if err := os.MkdirAll(f.target, 0o700); err != nil {
		return err
	}
	return l.Transport.Mount(blob, f.path("bootstrap"), f.target)
}

// keep reports whether an earlier daemon's mount is served again. One that cannot be
// is unmounted.
func (l *Layers) keep(f *files, blob *ondemand.Blob) (bool, error) {
	if l.Adopted {
		return true, nil
	}
	reason := l.Transport.Revive(blob)
	if reason == nil {
		return true, nil
	}
	l.Log.Warn("a layer's mount is replaced", "layer", f.Layer, "reason", reason)
	if err := l.unserved(l.ctx, f.Layer); err != nil {
		return false, err
	}
	return false, erofs.Unmount(f.target)
}

// quarantine makes a layer whose files cannot be used Quarantined.
func (l *Layers) quarantine(layer *Layer, f *files, err error) {
	l.Log.Error("layer is quarantined: containers on it cannot start until it can be made again, which is tried by itself",
		"layer", layer.digest, "error", err)
	l.become(layer, Quarantined, f, nil, err)
}

// letGo ends the use of a layer's blob. The layer is Leaving with ErrBusy, and
// also after other errors, where somebody can reach its holes, or that is not
// known. After success it has files only.
func (l *Layers) letGo(layer *Layer) error {
	f, on := layer.files, layer.serving
	if f.mounted() {
		if err := erofs.Unmount(f.target); err != nil {
			return err
		}
	}
	l.become(layer, Leaving, f, on, nil)
	if err := l.Transport.Detach(on.blob); err != nil {
		return err
	}
	close(on.gone)
	l.become(layer, Leaving, f, nil, nil)
	err := errors.Join(on.blob.Close(), l.Transport.Remove(f.key()))
	on.source.drop()
	if err != nil {
		l.Log.Warn("closing a layer's blob", "layer", layer.digest, "error", err)
	}
	return nil
}

// evict empties a Ready layer that nothing can have mounted, and returns what that
// has freed.
func (l *Layers) evict(layer *Layer) (freed int64, err error) {
	if layer.state != Ready || l.pinned(layer) {
		return 0, nil
	}
	uses, err := l.uses(l.ctx)
	if err != nil || len(uses[layer.digest].snapshots) > 0 {
		return 0, err
	}
	before, err := layer.usage()
	if err != nil {
		return 0, err
	}
	if err := l.letGo(layer); err != nil {
		if errors.Is(err, ondemand.ErrBusy) {
			err = nil // it is mounted somewhere all the same
		}
		return 0, err
	}
	if err := l.emptied(layer); err != nil {
		return 0, err
	}
	after, err := layer.usage()
	l.Log.Info("evicted a layer that no container uses", "layer", layer.digest, "bytes", before.Size-after.Size)
	return before.Size - after.Size, err
}

// emptied deletes the blob of a layer that was let go, which is Evicted then.
func (l *Layers) emptied(layer *Layer) error {
	err := layer.files.empty()
	l.become(layer, Evicted, layer.files, nil, nil)
	if err != nil {
		return fmt.Errorf("empty layer %s: %w", layer.digest, err)
	}
	return nil
}

// remove takes away a layer that no snapshot stands for. One that somebody can
// reach is Leaving, the others Absent.
func (l *Layers) remove(layer *Layer) error {
	if layer.state == Absent || l.pinned(layer) {
		return nil
	}
	uses, err := l.uses(l.ctx)
	if err != nil || uses[layer.digest].stands {
		return err
	}
	f := layer.files
	if layer.serving != nil {
		if err := l.letGo(layer); errors.Is(err, ondemand.ErrBusy) {
			return nil
		} else if err != nil {
			return fmt.Errorf("remove layer %s: %w", layer.digest, err)
		}
	}
	var errs []error
	if f != nil {
		if err := l.dirs.discard(f.dir); err != nil {
			return fmt.Errorf("remove layer %s: %w", layer.digest, err)
		}
		if f.Mountpoint != "" {
			errs = append(errs, l.removeMountpoint(f.Mountpoint))
		}
	}
	if _, fetched, err := l.Store.Origin(layer.digest); err == nil && fetched {
		errs = append(errs, l.Store.Remove(layer.digest))
	}
	l.become(layer, Absent, nil, nil, nil)
	return errors.Join(errs...)
}

// left looks whether a Leaving layer can be let go by now.
func (l *Layers) left(layer *Layer) error {
	uses, err := l.uses(l.ctx)
	if err != nil || layer.state != Leaving || l.pinned(layer) {
		return err
	}
	if !uses[layer.digest].stands {
		return l.remove(layer)
	}
	if layer.serving != nil {
		if err := l.letGo(layer); err != nil {
			if errors.Is(err, ondemand.ErrBusy) {
				return nil
			}
			return err
		}
	}
	return l.emptied(layer)
}
