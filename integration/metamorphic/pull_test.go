package metamorphic

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"path/filepath"
	"slices"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/snapshotters"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

// theLayers are those of all images.
var theLayers []*layer

func layersOf(image int) (list []*layer) {
	for _, n := range imageLayers[image] {
		list = append(list, theLayers[n])
	}
	return list
}

// images are the ones that this sequence pulls. A snapshotter does not make durable what
// containerd unpacks, so a sequence with a loss of power pulls only lazy images.
func (s *sequence) images() int {
	if s.flavour == power {
		return 2
	}
	return len(imageLayers)
}

// pull pulls an image into a namespace, as containerd's unpacker does.
func (s *sequence) pull(r *rand.Rand) {
	ns := s.m.namespaces[r.IntN(len(s.m.namespaces))]
	image := r.IntN(s.images())
	s.pullImage(ns, image)
}

func (s *sequence) pullImage(ns *namespace, image int) bool {
	ns.pull.Lock()
	defer ns.pull.Unlock()
	s.m.mu.Lock()
	ns.images[image] = true // a lease, first
	s.m.mu.Unlock()
	for n := range imageLayers[image] {
		if s.failed.Load() || s.down.Load() {
			return false
		}
		if !s.extract(ns, layersOf(image)[:n+1]) {
			s.m.mu.Lock()
			delete(ns.images, image)
			s.m.mu.Unlock()
			return false
		}
	}
	return true
}

// extract has the node make the snapshot of a chain, or unpacks its last layer.
func (s *sequence) extract(ns *namespace, layers []*layer) bool {
	s.m.protocol.RLock()
	defer s.m.protocol.RUnlock()
	chain, l := chainID(layers), layers[len(layers)-1]
	s.m.mu.Lock()
	parent := ns.chains[chainID(layers[:len(layers)-1])]
	_, have := ns.chains[chain]
	indexed, drops := s.m.indexed[l], s.m.drops
	under := s.m.snaps[parent]
	s.m.mu.Unlock()
	if have {
		return true
	}
	if len(layers) > 1 && under == nil {
		return false // it went in a death
	}
	var files content
	ordinary := false
	if under != nil {
		files, ordinary = under.files, under.ordinary
	}
	files = files.with(l.files)
	key := s.m.newKey(ns, "extract "+l.name)
	active := s.m.put(&snap{key: key, parent: parent, kind: snapshots.KindActive, exists: unsure, owned: true, files: files})
	abandon := func() bool {
		s.m.mu.Lock()
		active.owned = false
		s.m.mu.Unlock()
		return false
	}
	var mounts []mount.Mount
	err := s.call(fmt.Sprintf("Prepare %q on %.20s for %.20s", key, parent, chain), func(ctx context.Context, sn Snapshotter) (err error) {
		mounts, err = sn.Prepare(ctx, key, parent, snapshots.WithLabels(map[string]string{
			snapshots.LabelSnapshotRef:             chain,
			snapshotters.TargetRefLabel:            s.reg.Ref("latest"),
			snapshotters.TargetLayerDigestLabel:    l.digest.String(),
			snapshotters.TargetImageLayersLabel:    l.digest.String(),
			snapshotters.TargetManifestDigestLabel: "",
		}))
		return err
	})
	if s.lenient.Load() && !errdefs.IsAlreadyExists(err) {
		s.perhapsLazy(chain, parent, l, files, ordinary) // and the answer was lost
	}
	switch {
	case errdefs.IsAlreadyExists(err):
		s.m.setExists(key, goneForSure)
		return s.adoptLazy(ns, chain, parent, l, files, ordinary)
	case err == nil:
		s.m.setExists(key, there)
		s.m.mu.Lock()
		indexed = indexed && s.m.drops == drops
		s.m.mu.Unlock()
		if indexed && !ordinary && !s.troubled.Load() { // a registry in trouble may be remembered
			s.nodeLock.RLock()
			a, _ := s.child.ask(request{Op: "status"})
			s.nodeLock.RUnlock()
			s.fail(wrongCall, "layer %s has an index and was not prepared lazily: %+v", l.name, a.Fallbacks)
			return abandon()
		}
		if s.flavour == power { // an index was being replaced: the client gives up, see images
			return abandon()
		}
		return s.unpack(ns, active, chain, l, mounts, files) || abandon()
	}
	s.must("Prepare of a layer", err)
	return abandon()
}

// perhapsLazy says that the node may have made the snapshot of a chain: under its plain
// name or, if the chain is there on another parent already, under another one.
func (s *sequence) perhapsLazy(chain, parent string, l *layer, files content, ordinary bool) {
	for _, name := range []string{chain, chain + " on " + digest.FromString(parent).Encoded()} {
		s.m.put(&snap{key: name, parent: parent, kind: snapshots.KindCommitted, exists: unsure, lazy: true, layer: l, ordinary: ordinary, files: files})
	}
}

// adoptLazy finds the snapshot that the node says is there, by containerd's rule.
func (s *sequence) adoptLazy(ns *namespace, chain, parent string, l *layer, files content, ordinary bool) bool {
	var found *snapshots.Info
	err := s.call("Walk", func(ctx context.Context, sn Snapshotter) error {
		return sn.Walk(ctx, func(_ context.Context, i snapshots.Info) error {
			if i.Kind == snapshots.KindCommitted && i.Labels[snapshots.LabelSnapshotRef] == chain && i.Parent == parent {
				found = &i
			}
			return nil
		}, fmt.Sprintf(`labels.%q==%s,parent==%q`, snapshots.LabelSnapshotRef, chain, parent))
	})
	if err != nil {
		s.must("Walk", err)
		s.perhapsLazy(chain, parent, l, files, ordinary)
		return false
	}
	if found == nil {
		s.fail(wrongCall, "Prepare says that %s exists, and there is no snapshot of it on %q", chain, parent)
		return false
	}
	s.m.put(&snap{key: found.Name, parent: parent, kind: snapshots.KindCommitted, exists: there, lazy: true, layer: l, ordinary: ordinary, files: files})
	s.m.mu.Lock()
	ns.chains[chain] = found.Name
	s.m.mu.Unlock()
	return true
}

// unpack does what containerd does with a layer that was not prepared lazily.
func (s *sequence) unpack(ns *namespace, active *snap, chain string, l *layer, mounts []mount.Mount, files content) bool {
	dir := filepath.Join(s.dir, "x"+fmt.Sprint(s.nextDir()))
	if err := mountAt(mounts, dir); err != nil {
		s.must("mount for unpacking", err)
		return false
	}
	_, err := s.read(task{Op: "untar", Path: dir, Data: l.tar})
	err = errors.Join(err, unix.Unmount(dir, unix.MNT_DETACH))
	if err != nil {
		if !s.faulty.Load() {
			s.must("unpack", err)
		}
		return false
	}
	name := s.m.newKey(ns, chain)
	return s.commitAs(active, name, files, func() { ns.chains[chain] = name })
}

// commitAs commits an active snapshot.
func (s *sequence) commitAs(active *snap, name string, files content, refer func()) bool {
	committed := s.m.put(&snap{key: name, parent: active.parent, kind: snapshots.KindCommitted, exists: unsure, ordinary: true, files: files})
	err := s.call(fmt.Sprintf("Commit %q as %q", active.key, name), func(ctx context.Context, sn Snapshotter) error {
		return sn.Commit(ctx, name, active.key)
	})
	if err != nil {
		s.m.setExists(active.key, unsure)
		return s.must("Commit", err)
	}
	s.m.mu.Lock()
	committed.exists = there
	delete(s.m.snaps, active.key)
	refer()
	s.m.mu.Unlock()
	return true
}

// dropImage removes an image of a namespace, or a committed container.
func (s *sequence) dropImage(r *rand.Rand) {
	ns := s.m.namespaces[r.IntN(len(s.m.namespaces))]
	if !ns.pull.TryLock() {
		return
	}
	defer ns.pull.Unlock()
	s.m.mu.Lock()
	defer s.m.mu.Unlock()
	if name, ok := pick(r, slices.Sorted(maps.Keys(ns.tops))); ok && r.IntN(2) == 0 {
		delete(ns.tops, name)
		return
	}
	image := r.IntN(len(imageLayers))
	delete(ns.images, image)
}
