package snapshot

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/singleflight"

	"github.com/lacuna-snapshotter/lacuna/erofs"
	"github.com/lacuna-snapshotter/lacuna/fetcher/index"
	"github.com/lacuna-snapshotter/lacuna/fetcher/registry"
	"github.com/lacuna-snapshotter/lacuna/ondemand"
)

// LayersConfig is what Layers is made of.
type LayersConfig struct {
	Root      string
	Client    *registry.Client
	Store     *index.Store
	Engine    *ondemand.Engine
	Transport ondemand.Transport
	// Adopted says that the transport serves the mounts of an earlier daemon,
	// whose requests have waited meanwhile. Without it they are replaced.
	Adopted bool
	Settle  Settle
	Cache   Cache
	Log     *slog.Logger
}

// Layers are the layers of a node.
type Layers struct {
	LayersConfig
	indexes *indexes
	ensure  singleflight.Group

	ctx    context.Context // of background work; ends with Close
	cancel context.CancelFunc
	work   sync.WaitGroup

	over    atomic.Bool // the cache is over its limit
	parking sync.Mutex  // see park

	mu        sync.Mutex
	layers    map[digest.Digest]*Layer
	pins      map[digest.Digest]int // against removal and eviction
	fallbacks map[digest.Digest]Fallback
	replaced  []digest.Digest // mounts that were not served, of Restore
}

// OpenLayers makes the directories. Restore brings back what is in them.
func OpenLayers(c LayersConfig) (*Layers, error) {
	for _, dir := range []string{"layers", "m"} {
		mode := os.FileMode(0o700)
		if dir == "m" {
			mode = 0o711 // a container in a user namespace walks through it
		}
		if err := os.MkdirAll(filepath.Join(c.Root, dir), mode); err != nil {
			return nil, err
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	l := &Layers{
		LayersConfig: c,
		indexes:      &indexes{client: c.Client, store: c.Store, log: c.Log},
		ctx:          ctx, cancel: cancel,
		layers: map[digest.Digest]*Layer{}, pins: map[digest.Digest]int{}, fallbacks: map[digest.Digest]Fallback{},
	}
	return l, nil
}

func (l *Layers) layer(state layerState) *Layer {
	return &Layer{
		state: state,
		dir:   filepath.Join(l.Root, "layers", state.Layer.Encoded()),
		// 12 hexadecimal digits keep overlay's options short.
		target: filepath.Join(l.Root, "m", state.Layer.Encoded()[:12]),
		used:   time.Now(),
		gone:   make(chan struct{}),
	}
}

// get returns a layer that is ready and pins it.
func (l *Layers) get(d digest.Digest) *Layer {
	l.mu.Lock()
	defer l.mu.Unlock()
	layer := l.layers[d]
	if layer == nil || layer.err != nil {
		return nil
	}
	l.pins[d]++
	layer.used = time.Now()
	return layer
}

func (l *Layers) unpin(d digest.Digest) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.pins[d]--; l.pins[d] == 0 {
		delete(l.pins, d)
	}
}

// Ensure makes a layer ready: mounted, its holes served. The layer is pinned
// against removal until release is called.
func (l *Layers) Ensure(ctx context.Context, t Target) (release func(), err error) {
	for {
		if l.get(t.Layer) != nil {
			return func() { l.unpin(t.Layer) }, nil
		}
		done := l.ensure.DoChan(t.Layer.String(), func() (any, error) {
			// The work outlives the one who asked first: others may wait too.
			ctx, cancel := context.WithTimeout(l.ctx, time.Minute)
			defer cancel()
			return nil, l.prepare(ctx, t)
		})
		select {
		case r := <-done:
			if r.Err != nil {
				return nil, r.Err
			}
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// prepare finds the layer's index, writes the layer's directory and opens it.
func (l *Layers) prepare(ctx context.Context, t Target) error {
	if l.get(t.Layer) != nil {
		l.unpin(t.Layer)
		return nil
	}
	head, err := l.indexes.find(ctx, t)
	if err != nil {
		return err
	}
	m := head.Map
	image, err := erofs.Open(head.Bootstrap)
	if err != nil {
		return err
	}
	layer := l.layer(layerState{
		Version: stateVersion, Layer: t.Layer, Bootstrap: digest.FromBytes(head.Bootstrap), Ref: t.Ref,
		BlobSize: m.BlobSize, SpanSize: m.SpanSize, Inodes: int64(image.Inodes), Packed: m.PackedSize,
	})
	if err := layer.clear(); err != nil {
		return err
	}
	if err := layer.write(head, l.Store); err != nil {
		return err
	}
	if err := l.open(layer); err != nil {
		return err
	}
	l.work.Add(1)
	go l.fillPredicted(layer, t)
	return nil
}

func (l *Layers) find(d digest.Digest) *Layer {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.layers[d]
}

// open opens a written layer and adds it, in the order that lets no hole be
// read: blob, attach, mount.
func (l *Layers) open(layer *Layer) (err error) {
	own, err := index.OpenStore(layer.dir)
	if err != nil {
		return err
	}
	layer.source = &layerSource{state: layer.state, store: own, client: l.Client}
	store, err := l.Transport.Store(layer.key(), layer.state.BlobSize, layer.state.SpanSize)
	if err != nil {
		return err
	}
	layer.blob, err = l.Engine.Open(ondemand.BlobConfig{
		Key: layer.key(), Path: layer.path("blob"),
		Size: layer.state.BlobSize, SpanSize: layer.state.SpanSize,
		Source: layer.source, Store: store,
	})
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, layer.blob.Close())
		}
	}()
	if err := l.Transport.Attach(layer.blob, layer.path("bootstrap")); err != nil {
		return err
	}
	if err := l.mount(layer); err != nil {
		return errors.Join(err, l.Transport.Detach(layer.blob))
	}
	l.mu.Lock()
	l.layers[layer.state.Layer] = layer
	delete(l.fallbacks, layer.state.Layer)
	l.mu.Unlock()
	l.work.Add(1)
	go l.watch(layer)
	return nil
}

// mount mounts the layer, unless an earlier daemon's mount goes on.
func (l *Layers) mount(layer *Layer) error {
	if layer.mounted() {
		kept, err := l.keep(layer)
		if kept || err != nil {
			return err
		}
	}
	if err := os.MkdirAll(layer.target, 0o755); err != nil {
		return err
	}
	return l.Transport.Mount(layer.blob, layer.path("bootstrap"), layer.target)
}

// keep reports whether an earlier daemon's mount is served again. One that cannot be
// is unmounted.
func (l *Layers) keep(layer *Layer) (bool, error) {
	if l.Adopted {
		return true, nil
	}
	reason := l.Transport.Revive(layer.blob)
	if reason == nil {
		return true, nil
	}
	l.Log.Warn("a layer is mounted anew", "layer", layer.state.Layer, "reason", reason)
	if err := erofs.Unmount(layer.target); err != nil {
		return false, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.replaced = append(l.replaced, layer.state.Layer)
	return false, nil
}

// watch lets a layer go once it is complete.
func (l *Layers) watch(layer *Layer) {
	defer l.work.Done()
	select {
	case <-layer.blob.Completed():
	case <-layer.gone:
		return
	case <-l.ctx.Done():
		return
	}
	if err := layer.blob.Sync(); err != nil {
		l.Log.Error("complete layer is not durable yet", "layer", layer.state.Layer, "error", err)
	}
	if err := l.Transport.Release(layer.blob); err != nil {
		l.Log.Error("releasing a complete layer", "layer", layer.state.Layer, "error", err)
		return
	}
	layer.source.drop()
	l.Log.Info("layer is complete", "layer", layer.state.Layer)
}

// Restore opens the layers of an earlier run. One that cannot be opened is
// quarantined and stops nothing.
func (l *Layers) Restore(ctx context.Context) error {
	dirs, err := os.ReadDir(filepath.Join(l.Root, "layers"))
	if err != nil {
		return err
	}
	for _, d := range dirs {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		dir := filepath.Join(l.Root, "layers", d.Name())
		state, err := readState(dir)
		if errors.Is(err, os.ErrNotExist) {
			// Its Prepare did not get far enough to be answered.
			if err := os.RemoveAll(dir); err != nil {
				l.Log.Error("removing a half-made layer", "dir", dir, "error", err)
			}
			continue
		}
		layer := l.layer(layerState{Layer: digest.NewDigestFromEncoded(digest.SHA256, d.Name())})
		if err == nil {
			layer = l.layer(state)
			err = l.open(layer)
		}
		if err != nil {
			l.quarantine(layer, err)
		}
	}
	l.work.Add(1)
	go l.settle()
	return nil
}

func (l *Layers) quarantine(layer *Layer, err error) {
	l.Log.Error("layer is quarantined; containers on it cannot start until its image is pulled again",
		"layer", layer.state.Layer, "error", err)
	l.mu.Lock()
	defer l.mu.Unlock()
	layer.err = err
	l.layers[layer.state.Layer] = layer
}

// takeReplaced returns the layers whose mounts Restore has replaced, once.
func (l *Layers) takeReplaced() []digest.Digest {
	l.mu.Lock()
	defer l.mu.Unlock()
	list := l.replaced
	l.replaced = nil
	return list
}

// mountpoint is where a layer's files are. The snapshot that asks is known
// already, so the layer is not parked from now on.
func (l *Layers) mountpoint(d digest.Digest) (string, error) {
	l.parking.Lock()
	defer l.parking.Unlock()
	layer := l.find(d)
	if layer != nil && layer.err == nil && layer.blob == nil {
		var err error
		if layer, err = l.unpark(layer); err != nil {
			return "", err
		}
	}
	if layer != nil {
		l.mu.Lock()
		layer.used = time.Now()
		l.mu.Unlock()
	}
	switch {
	case layer == nil:
		return "", errors.New("not on this node any more: pull its image again")
	case layer.err != nil:
		return "", fmt.Errorf("quarantined: %w", layer.err)
	case !layer.mounted():
		return "", fmt.Errorf("nothing is mounted at %s: restart lacuna-snapshotter", layer.target)
	}
	return layer.target, nil
}

func (l *Layers) usage(d digest.Digest) (snapshots.Usage, error) {
	layer := l.find(d)
	if layer == nil {
		return snapshots.Usage{}, nil
	}
	return layer.usage()
}

// removeUnused removes the layers that are neither used nor pinned.
func (l *Layers) removeUnused(used map[digest.Digest]bool) error {
	l.mu.Lock()
	var unused []*Layer
	for d, layer := range l.layers {
		if !used[d] && l.pins[d] == 0 {
			unused = append(unused, layer)
			delete(l.layers, d)
		}
	}
	l.mu.Unlock()
	var errs []error
	for _, layer := range unused {
		if err := l.remove(layer); err != nil {
			errs = append(errs, fmt.Errorf("remove layer %s: %w", layer.state.Layer, err))
		}
	}
	return errors.Join(errs...)
}

// remove takes a layer down, the mount first, and deletes its files.
func (l *Layers) remove(layer *Layer) error {
	var errs []error
	if layer.mounted() {
		errs = append(errs, erofs.Unmount(layer.target))
	}
	if layer.blob != nil {
		close(layer.gone)
		errs = append(errs, l.Transport.Detach(layer.blob), layer.blob.Close(), l.Transport.Remove(layer.key()))
		layer.source.drop()
	}
	if err := os.Remove(layer.target); err != nil && !errors.Is(err, os.ErrNotExist) {
		errs = append(errs, err)
	}
	if _, found, err := l.Store.Source(layer.state.Layer); err == nil && found {
		errs = append(errs, l.Store.Remove(layer.state.Layer))
	}
	return errors.Join(append(errs, os.RemoveAll(layer.dir))...)
}

// Served reports whether any layer's mount needs the transport's answers.
func (l *Layers) Served() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, layer := range l.layers {
		if layer.blob != nil && l.Transport.Serves(layer.blob) {
			return true
		}
	}
	return false
}

// Close ends background work and closes the blobs. Mounts stay; the transport
// is the caller's.
func (l *Layers) Close() error {
	l.cancel()
	l.work.Wait()
	l.mu.Lock()
	defer l.mu.Unlock()
	var errs []error
	for _, layer := range l.layers {
		if layer.blob != nil {
			errs = append(errs, layer.blob.Close())
			layer.source.drop()
		}
	}
	return errors.Join(errs...)
}
