package layer

import (
	"context"
	"errors"
	"fmt"

	"github.com/lacuna-snapshotter/lacuna/erofs"
	"github.com/lacuna-snapshotter/lacuna/ondemand"
)

// Transitions to Leaving and Absent. Every function here that takes a *Layer is
// called with its lifecycle lock held.

// RemoveUnused removes the layers that no snapshot stands for, and what is below the
// root and belongs to nothing.
func (l *Set) RemoveUnused(ctx context.Context) error {
	uses, err := l.uses(ctx)
	if err != nil {
		return err
	}
	var errs []error
	for _, d := range l.all() {
		if !uses[d].Needed {
			errs = append(errs, l.with(ctx, d, func(layer *Layer) error { return l.remove(ctx, layer) }))
		}
	}
	return errors.Join(append(errs, l.sweep(ctx))...)
}

// remove removes a layer that no snapshot stands for. One that a process can reach is
// Leaving then, any other Absent.
func (l *Set) remove(ctx context.Context, layer *Layer) error {
	if layer.state == Absent || l.pinned(layer) {
		return nil
	}
	uses, err := l.uses(ctx)
	if err != nil || uses[layer.digest].Needed {
		return err
	}
	f := layer.files
	if layer.serving != nil {
		if err := l.closeBlob(layer); errors.Is(err, ondemand.ErrBusy) {
			return nil
		} else if err != nil {
			return fmt.Errorf("remove layer %s: %w", layer.digest, err)
		}
	}
	var errs []error
	if f != nil {
		if err := l.dirs.Discard(f.dir); err != nil {
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

// closeBlob unmounts a layer and closes its blob, where no process can read a hole of
// it. The layer is Leaving with ErrBusy, and with other errors after which a process
// may still reach the blob. After success it has files only, and is Leaving until the
// caller gives it another state.
func (l *Set) closeBlob(layer *Layer) error {
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
	err := errors.Join(on.blob.Close(), ondemand.Remove(l.Transport, f.key()))
	on.source.drop()
	if err != nil {
		l.Log.Warn("closing the blob of a layer failed", "layer", layer.digest, "error", err)
	}
	return nil
}

// finishLeaving completes the leaving of layers that no process can reach any more,
// and empties the trash.
func (l *Set) finishLeaving() {
	for sleep(l.ctx, lookEvery) {
		for _, d := range l.all() {
			view, _ := l.view(d)
			if view.state != Leaving {
				continue
			}
			err := l.with(l.ctx, d, func(layer *Layer) error { return l.leave(l.ctx, layer) })
			if err != nil && l.ctx.Err() == nil {
				l.Log.Warn("a leaving layer could not be closed; this is tried again", "layer", d, "error", err)
			}
		}
		if err := l.dirs.EmptyTrash(); err != nil {
			l.Log.Warn("emptying the trash failed; this is tried again", "error", err)
		}
	}
}

// leave makes a Leaving layer Absent, or Evicted where a snapshot stands for it. A
// layer that a process can still reach stays Leaving.
func (l *Set) leave(ctx context.Context, layer *Layer) error {
	uses, err := l.uses(ctx)
	if err != nil || layer.state != Leaving || l.pinned(layer) {
		return err
	}
	if !uses[layer.digest].Needed {
		return l.remove(ctx, layer)
	}
	if layer.serving != nil {
		if err := l.closeBlob(layer); errors.Is(err, ondemand.ErrBusy) {
			return nil
		} else if err != nil {
			return err
		}
	}
	return l.empty(layer)
}
