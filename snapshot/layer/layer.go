package layer

import (
	"context"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/opencontainers/go-digest"

	"github.com/lacuna-snapshotter/lacuna/ondemand"
)

// State is where a layer is in its life: see the package's comment. Status, metrics
// and docs use the same words.
type State string

// The states of a layer. Status tells Filling or Complete in place of Ready.
const (
	Absent      State = "absent"
	Ready       State = "ready"
	Leaving     State = "leaving"
	Evicted     State = "evicted"
	Quarantined State = "quarantined"

	Filling  State = "filling"
	Complete State = "complete"
)

// Layer is one image layer on this node.
type Layer struct {
	digest digest.Digest
	life   chan struct{} // the lifecycle lock: holds a token while it is free

	// Guarded by Set.mu, and changed by become alone, whose caller holds the
	// lifecycle lock. So the holder of that lock reads them without Set.mu.
	state   State
	err     error // why the layer is quarantined
	files   *files
	serving *serving // nil unless ready or leaving

	// Guarded by Set.mu alone.
	refs  int // holders of the lifecycle lock, those that wait for it, and pins
	pins  int // against removal and eviction
	used  time.Time
	retry backoff // of rebuilding it
	fill  backoff // of backfill
}

// serving is a layer's open blob.
type serving struct {
	blob   *ondemand.Blob
	source *layerSource
	gone   chan struct{} // closed when the blob is
}

// lock takes a layer's lifecycle lock. The layer is in the table until unlock, even
// one that is absent.
func (l *Set) lock(ctx context.Context, d digest.Digest) (*Layer, error) {
	l.mu.Lock()
	layer := l.layers[d]
	if layer == nil {
		layer = &Layer{digest: d, life: make(chan struct{}, 1), state: Absent, used: time.Now()}
		layer.life <- struct{}{}
		l.layers[d] = layer
	}
	layer.refs++
	l.mu.Unlock()
	select { // a lock that is free is taken even when ctx is over
	case <-layer.life:
		return layer, nil
	default:
	}
	select {
	case <-layer.life:
		return layer, nil
	case <-ctx.Done():
		l.unref(layer)
		return nil, ctx.Err()
	}
}

func (l *Set) unlock(layer *Layer) {
	layer.life <- struct{}{}
	l.unref(layer)
}

func (l *Set) unref(layer *Layer) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if layer.refs--; layer.refs == 0 && layer.state == Absent {
		delete(l.layers, layer.digest)
	}
}

// with calls f with a layer's lifecycle lock held.
func (l *Set) with(ctx context.Context, d digest.Digest, f func(*Layer) error) error {
	layer, err := l.lock(ctx, d)
	if err != nil {
		return err
	}
	defer l.unlock(layer)
	return f(layer)
}

// pin keeps a layer from being removed or evicted until release is called. The caller
// holds the lifecycle lock.
func (l *Set) pin(layer *Layer) (release func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	layer.pins++
	layer.refs++
	return func() {
		l.mu.Lock()
		layer.pins--
		l.mu.Unlock()
		l.unref(layer)
	}
}

// pinned reports whether a layer is pinned. The caller holds the lifecycle lock. A
// layer that is not pinned stays so until that is unlocked.
func (l *Set) pinned(layer *Layer) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return layer.pins > 0
}

// touch notes that a layer is used now.
func (l *Set) touch(layer *Layer) {
	l.mu.Lock()
	defer l.mu.Unlock()
	layer.used = time.Now()
}

// become changes a layer's state. The caller holds the lifecycle lock.
func (l *Set) become(layer *Layer, s State, f *files, on *serving, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	layer.state, layer.files, layer.serving, layer.err = s, f, on, err
	if s == Ready {
		layer.used, layer.retry = time.Now(), backoff{}
	}
}

// view copies what Set.mu guards, for a caller that does not hold the lifecycle lock.
func (l *Set) view(d digest.Digest) (view Layer, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	layer := l.layers[d]
	if layer == nil || layer.state == Absent {
		return Layer{}, false
	}
	return *layer, true
}

// all lists the layers of the table.
func (l *Set) all() []digest.Digest {
	l.mu.Lock()
	defer l.mu.Unlock()
	list := make([]digest.Digest, 0, len(l.layers))
	for d := range l.layers {
		list = append(list, d)
	}
	return list
}

// Usage is what a layer has allocated on disk.
func (l *Set) Usage(d digest.Digest) (snapshots.Usage, error) {
	view, ok := l.view(d)
	if !ok {
		return snapshots.Usage{}, nil
	}
	return view.usage()
}

func (layer *Layer) usage() (snapshots.Usage, error) {
	if layer.files == nil {
		return snapshots.Usage{}, nil
	}
	u, err := layer.files.usage()
	if err != nil || layer.serving == nil {
		return u, err
	}
	n, err := layer.serving.blob.Allocated()
	u.Size += n
	return u, err
}
