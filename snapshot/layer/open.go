package layer

import (
	"errors"

	"github.com/lacuna-snapshotter/lacuna/erofs"
	"github.com/lacuna-snapshotter/lacuna/fetcher/index"
	"github.com/lacuna-snapshotter/lacuna/ondemand"
)

// open opens a layer whose directory is written, and makes it Ready, in the order in
// which no process can read a hole: blob, attach, mount. After an error the layer is
// Leaving where its file system may still be in use, and as it was otherwise.
func (l *Set) open(layer *Layer, f *files) error {
	own, err := index.OpenStore(f.dir)
	if err != nil {
		return err
	}
	// Without the index no hole could ever be filled. Without the bootstrap erofs.InUse
	// could never tell that the file system is not in use.
	if err := errors.Join(regular(f.path("bootstrap")), regular(own.Path(f.Layer))); err != nil {
		return err
	}
	source := newLayerSource(&ownIndex{f.layerState, index.NewFit(f.fits), own, l.Client, l.resolver, l.dirs.Temp, l.Log})
	blob, fresh, err := l.openBlob(f, source)
	if err != nil {
		return err
	}
	if err := l.Transport.Attach(blob, f.path("bootstrap")); err != nil {
		return errors.Join(err, blob.Close())
	}
	on := &serving{blob: blob, source: source, gone: make(chan struct{})}
	if fresh && f.mounted() { // of a file that is not the blob any more
		err = erofs.Unmount(f.target)
	}
	if err == nil {
		err = l.mount(f, blob)
	}
	if err != nil {
		if detachErr := l.Transport.Detach(blob); detachErr != nil {
			// An earlier mount could not be replaced, or the transport cannot tell.
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

// openBlob opens a layer's blob. A file that is not the blob is replaced. fresh says
// that the blob's file is a new one.
func (l *Set) openBlob(f *files, source *layerSource) (blob *ondemand.Blob, fresh bool, err error) {
	backing, err := ondemand.NewBacking(l.Transport, f.key(), f.BlobSize, f.SpanSize)
	if err != nil {
		return nil, false, err
	}
	fresh = backing == nil && regular(f.path("blob")) != nil
	config := ondemand.BlobConfig{
		Key: f.key(), Path: f.path("blob"), Size: f.BlobSize, SpanSize: f.SpanSize,
		Source: source, Group: registryOf(f.Ref), Backing: backing,
	}
	blob, err = l.Engine.Open(config)
	var foreign *ondemand.ForeignFileError
	if errors.As(err, &foreign) {
		fresh = true
		if err = f.discardBlob(l.dirs); err == nil {
			blob, err = l.Engine.Open(config)
		}
	}
	return blob, fresh, err
}

// mount mounts a layer, unless the mount of an earlier daemon is served again.
func (l *Set) mount(f *files, blob *ondemand.Blob) error {
	if f.mounted() {
		served, err := l.reuse(f, blob)
		if served || err != nil {
			return err
		}
	}
	if err := l.makeMountpoint(f.target); err != nil {
		return err
	}
	return l.Transport.Mount(blob, f.path("bootstrap"), f.target)
}

// reuse reports whether the mount of an earlier daemon is served again. One that
// cannot be is unmounted.
func (l *Set) reuse(f *files, blob *ondemand.Blob) (served bool, err error) {
	if l.Adopted {
		return true, nil
	}
	reason := ondemand.Revive(l.Transport, blob)
	if reason == nil {
		return true, nil
	}
	l.Log.Warn("a layer's mount is replaced", "layer", f.Layer, "reason", reason)
	if err := l.noteUnserved(l.ctx, f.Layer); err != nil {
		return false, err
	}
	return false, erofs.Unmount(f.target)
}
