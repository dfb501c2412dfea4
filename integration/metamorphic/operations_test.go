package metamorphic

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"time"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/snapshotters"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/lacuna-snapshotter/lacuna/fetcher/layertest"
	"github.com/lacuna-snapshotter/lacuna/fetcher/registry/registrytest"
)

// operation is one that a goroutine may do. Its random numbers are the
// goroutine's own.
type operation struct {
	weight int
	do     func(s *sequence, r *rand.Rand)
}

var operations = []operation{
	{10, (*sequence).pull},
	{10, (*sequence).start},
	{8, (*sequence).readSome},
	{4, (*sequence).readAll},
	{3, (*sequence).write},
	{3, (*sequence).hold},
	{3, (*sequence).reread},
	{2, (*sequence).commit},
	{3, (*sequence).mounts},
	{7, (*sequence).stop},
	{4, (*sequence).dropImage},
	{5, (*sequence).collect},
	{3, (*sequence).cleanup},
	{4, (*sequence).evict},
	{3, (*sequence).fill},
	{2, (*sequence).reindex},
	{2, (*sequence).probe},
	{1, (*sequence).trouble},
}

// operate does one, as the numbers fall.
func (s *sequence) operate(r *rand.Rand) {
	total := 0
	for _, o := range operations {
		total += o.weight
	}
	n := r.IntN(total)
	for _, o := range operations {
		if n -= o.weight; n < 0 {
			o.do(s, r)
			return
		}
	}
}

// theLayers are those of all images.
var theLayers []*layer

func layersOf(image int) (list []*layer) {
	for _, n := range imageLayers[image] {
		list = append(list, theLayers[n])
	}
	return list
}

// images are the ones that this sequence pulls. What containerd unpacks is not its
// to make durable, so a sequence with a loss of power has none of it.
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
		// It may have been made, and that not been told.
		// Where the chain is on another parent already, its name is another.
		for _, name := range []string{chain, chain + " on " + digest.FromString(parent).Encoded()} {
			s.m.put(&snap{key: name, parent: parent, kind: snapshots.KindCommitted, exists: unsure, lazy: true, layer: l, ordinary: ordinary, files: files})
		}
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
		return s.unpack(ns, active, chain, l, mounts, files) || abandon()
	}
	s.must("Prepare of a layer", err)
	return abandon()
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
		s.m.put(&snap{key: chain, parent: parent, kind: snapshots.KindCommitted, exists: unsure, lazy: true, layer: l, ordinary: ordinary, files: files})
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

func (s *sequence) nextDir() int {
	s.m.mu.Lock()
	defer s.m.mu.Unlock()
	s.m.next++
	return s.m.next
}

// start makes a container or a view and mounts it.
func (s *sequence) start(r *rand.Rand) {
	ns := s.m.namespaces[r.IntN(len(s.m.namespaces))]
	s.m.protocol.RLock()
	defer s.m.protocol.RUnlock()
	s.m.mu.Lock()
	var on []string
	for image := range ns.images {
		if key, ok := ns.chains[chainID(layersOf(image))]; ok {
			on = append(on, key)
		}
	}
	on = append(on, slices.Collect(maps.Keys(ns.tops))...)
	slices.Sort(on)
	key, ok := pick(r, on)
	parent := s.m.snaps[key]
	s.m.mu.Unlock()
	view := r.IntN(4) == 0
	if ok && parent != nil {
		s.startOn(ns, parent, view)
	}
}

func (s *sequence) startOn(ns *namespace, parent *snap, view bool) *container {
	kind, what := snapshots.KindActive, "Prepare"
	if view {
		kind, what = snapshots.KindView, "View"
	}
	key := s.m.newKey(ns, "container")
	active := s.m.put(&snap{key: key, parent: parent.key, kind: kind, exists: unsure, owned: true})
	c := &container{key: key, ns: ns, view: view, parent: parent, own: content{}, held: map[int64]string{}}
	c.dir = filepath.Join(s.dir, "c"+fmt.Sprint(s.nextDir()))
	err := s.call(fmt.Sprintf("%s %q on %.40s", what, key, parent.key), func(ctx context.Context, sn Snapshotter) (err error) {
		if view {
			c.mounts, err = sn.View(ctx, key, parent.key)
		} else {
			c.mounts, err = sn.Prepare(ctx, key, parent.key)
		}
		return err
	})
	if err == nil {
		s.m.setExists(key, there)
		err = mountAt(c.mounts, c.dir)
		c.mounted = err == nil
		s.note("mount %s at %s: %v", key, filepath.Base(c.dir), err)
		what = "mount"
	}
	if err != nil {
		s.must(what+" of a container", err)
		s.m.mu.Lock()
		active.owned = false
		s.m.mu.Unlock()
		return nil
	}
	s.m.mu.Lock()
	defer s.m.mu.Unlock()
	s.m.containers = append(s.m.containers, c)
	return c
}

// some picks a container and locks it.
func (s *sequence) some(r *rand.Rand, fit func(*container) bool) *container {
	s.m.mu.Lock()
	list := slices.Clone(s.m.containers)
	s.m.mu.Unlock()
	r.Shuffle(len(list), func(i, j int) { list[i], list[j] = list[j], list[i] })
	for _, c := range list {
		if c.TryLock() {
			if c.mounted && fit(c) {
				return c
			}
			c.Unlock()
		}
	}
	return nil
}

func any1(*container) bool { return true }

// lives is of a container whose snapshot is there.
func lives(c *container) bool { return !c.removed }

// judge says what to make of a reader's error.
func (s *sequence) judge(c *container, where string, err error) {
	if err != nil && !s.failed.Load() && !s.down.Load() && !s.faulty.Load() && !c.removed {
		s.fail(readError, "%s: %v", where, err)
	}
}

// readSome reads a few files.
func (s *sequence) readSome(r *rand.Rand) {
	c := s.some(r, any1)
	if c == nil {
		return
	}
	defer c.Unlock()
	files := c.files()
	for range 1 + r.IntN(4) {
		name, _ := pick(r, slices.Sorted(maps.Keys(files)))
		op := "read"
		if r.IntN(3) == 0 {
			op = "map"
		}
		where := fmt.Sprintf("%s %s %s", op, c.key, name)
		got, err := s.read(task{Op: op, Path: filepath.Join(c.dir, name)})
		s.note("%s: %d bytes %s %v", where, got.Files[""].N, got.Files[""].Error, err)
		if err == nil {
			err = s.checkFile(where, files[name], got.Files[""], c.removed)
		}
		s.judge(c, where, err)
	}
}

// readAll reads everything, here or in the background.
func (s *sequence) readAll(r *rand.Rand) {
	c := s.some(r, any1)
	if c == nil {
		return
	}
	read := func() {
		defer c.Unlock()
		err := s.checkTree("tree of "+c.key, c.dir, c.files(), c.removed)
		s.note("read all of %s: %v", c.key, err)
		s.judge(c, "read all", err)
	}
	if r.IntN(2) == 0 {
		read()
		return
	}
	s.reads.Add(1)
	go func() {
		defer s.reads.Done()
		read()
	}()
}

// write writes in a container: new files, files of the image, at times very many.
func (s *sequence) write(r *rand.Rand) {
	c := s.some(r, func(c *container) bool { return !c.view && !c.removed })
	if c == nil {
		return
	}
	defer c.Unlock()
	files := c.files()
	name := fmt.Sprintf("own/%d", r.IntN(3))
	t := task{Op: "write", Data: layertest.Content(r, r.IntN(20000))}
	want := newFile(t.Data)
	switch r.IntN(4) {
	case 0:
		name, _ = pick(r, slices.Sorted(maps.Keys(files)))
		t.Op = "append"
		want = newFile(append(slices.Clone(files[name].data), t.Data...))
	case 1:
		name, t.Many = "many/file", 300
		want = newFile(t.Data)
	}
	t.Path = filepath.Join(c.dir, name)
	_, err := s.read(t)
	s.note("%s %s %s: %v", t.Op, c.key, name, err)
	if err != nil {
		c.unsound = true
		s.judge(c, "write "+name, err)
		return
	}
	c.own[name] = want
}

// hold opens a file and keeps it open.
func (s *sequence) hold(r *rand.Rand) {
	c := s.some(r, lives)
	if c == nil {
		return
	}
	defer c.Unlock()
	name, _ := pick(r, slices.Sorted(maps.Keys(c.parent.files)))
	id, outcome, err := s.reader.begin(task{Op: "open", Path: filepath.Join(c.dir, name)})
	if err == nil {
		_, err = s.reader.wait(outcome)
	}
	s.note("hold %s %s: %v", c.key, name, err)
	if err != nil {
		s.judge(c, "open "+name, err)
		return
	}
	c.held[id] = name
}

// reread reads a file that is held open, also where the container has gone. One
// that was copied up since reads as the copy (fs/overlayfs/file.c, ovl_real_file).
func (s *sequence) reread(r *rand.Rand) {
	s.m.mu.Lock()
	list := slices.Clone(s.m.containers)
	s.m.mu.Unlock()
	c, ok := pick(r, list)
	if !ok || !c.TryLock() {
		return
	}
	defer c.Unlock()
	id, ok := pick(r, slices.Sorted(maps.Keys(c.held)))
	if !ok {
		return
	}
	got, err := s.read(task{Op: "reread", Held: id})
	where := "reread a held file of " + c.key
	s.note("%s: %d bytes %s %v", where, got.Files[""].N, got.Files[""].Error, err)
	if err == nil {
		err = s.checkFile(where, c.files()[c.held[id]], got.Files[""], c.removed)
	}
	s.judge(c, where, err)
}

// commit commits a container, for others to stand on.
func (s *sequence) commit(r *rand.Rand) {
	if s.flavour == power {
		return
	}
	c := s.some(r, func(c *container) bool { return !c.view && !c.removed && !c.unsound && len(c.held) == 0 })
	if c == nil {
		return
	}
	defer c.Unlock()
	s.m.protocol.RLock()
	defer s.m.protocol.RUnlock()
	active := s.m.snap(c.key)
	if !s.unmount(c) || active == nil {
		return
	}
	name := s.m.newKey(c.ns, "committed")
	c.removed = true
	if !s.commitAs(active, name, c.files(), func() { c.ns.tops[name] = true }) {
		s.m.mu.Lock()
		active.owned = false
		s.m.mu.Unlock()
	}
}

// unmount ends a container's mount: lazily where it is in use, as runtimes do.
func (s *sequence) unmount(c *container) bool {
	if !c.mounted {
		return true
	}
	flags := 0
	if len(c.held) > 0 {
		flags = unix.MNT_DETACH
	}
	err := unix.Unmount(c.dir, flags)
	s.note("unmount %s: %v", c.key, err)
	if err != nil && !s.down.Load() {
		s.fail(wrongState, "unmount %s: %v", c.key, err)
		return false
	}
	c.mounted = false
	return true
}

// mounts asks for a container's mounts again.
func (s *sequence) mounts(r *rand.Rand) {
	c := s.some(r, lives)
	if c == nil {
		return
	}
	defer c.Unlock()
	err := s.call("Mounts "+c.key, func(ctx context.Context, sn Snapshotter) error {
		got, err := sn.Mounts(ctx, c.key)
		if err == nil && fmt.Sprint(got) != fmt.Sprint(c.mounts) {
			return fmt.Errorf("%v, they were %v", got, c.mounts)
		}
		return err
	})
	s.must("Mounts", err)
}

// stop ends a container: unmounts and removes it, in this order mostly.
func (s *sequence) stop(r *rand.Rand) {
	c := s.some(r, any1)
	if c == nil {
		return
	}
	defer c.Unlock()
	if c.removed {
		s.unmount(c)
		return
	}
	if r.IntN(4) > 0 && !s.unmount(c) {
		return
	}
	s.m.protocol.RLock()
	defer s.m.protocol.RUnlock()
	c.removed = true
	s.remove(c.key)
}

func (s *sequence) remove(key string) {
	active := s.m.snap(key)
	s.m.setExists(key, unsure)
	err := s.call(fmt.Sprintf("Remove %q", key), func(ctx context.Context, sn Snapshotter) error { return sn.Remove(ctx, key) })
	if err == nil {
		s.m.setExists(key, goneForSure)
		return
	}
	s.must("Remove", err)
	if active != nil {
		s.m.mu.Lock()
		active.owned = false
		s.m.mu.Unlock()
	}
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

// collect is containerd's garbage collection.
func (s *sequence) collect(r *rand.Rand) {
	s.m.protocol.Lock()
	for _, key := range s.m.garbage() {
		sn := s.m.snap(key)
		if sn == nil {
			continue
		}
		was := sn.exists
		s.m.setExists(key, unsure)
		err := s.call(fmt.Sprintf("Remove %.60q", key), func(ctx context.Context, sn Snapshotter) error { return sn.Remove(ctx, key) })
		if err == nil || notFound(err) && was == unsure {
			s.m.setExists(key, goneForSure)
		} else if s.must("Remove garbage", err); s.failed.Load() {
			break
		}
	}
	s.m.protocol.Unlock()
	s.cleanup(r)
}

func (s *sequence) cleanup(*rand.Rand) {
	err := s.call("Cleanup", func(ctx context.Context, sn Snapshotter) error { return sn.Cleanup(ctx) })
	s.must("Cleanup", err)
}

// evict empties what nobody uses, now or soon.
func (s *sequence) evict(*rand.Rand) {
	s.ask("evict")
	if s.config.MaxBytes > 0 {
		time.Sleep(2 * s.config.EvictEvery)
	}
}

func (s *sequence) ask(op string) {
	if s.down.Load() {
		return
	}
	s.nodeLock.RLock()
	defer s.nodeLock.RUnlock()
	_, err := s.child.ask(request{Op: op})
	s.note("%s: %v", op, err)
	if !s.faulty.Load() {
		s.must(op, err)
	}
}

// fill reads a layer all over, by a view on it alone where it is the lowest.
func (s *sequence) fill(r *rand.Rand) {
	s.ask("fill")
	s.m.protocol.RLock()
	list := s.m.committed()
	list = slices.DeleteFunc(list, func(sn *snap) bool { return sn.exists != there })
	sn, ok := pick(r, list)
	if ok {
		if err := s.viewAndRead(sn); err != nil && !s.faulty.Load() {
			s.must("view of "+sn.key, err)
		}
	}
	s.m.protocol.RUnlock()
}

// viewAndRead makes a view on a committed snapshot, reads all of it, and removes it.
func (s *sequence) viewAndRead(sn *snap) error {
	key := s.m.newKey(s.m.namespaces[0], "view")
	view := s.m.put(&snap{key: key, parent: sn.key, kind: snapshots.KindView, exists: unsure, owned: true})
	defer func() {
		s.m.mu.Lock()
		view.owned = false
		s.m.mu.Unlock()
	}()
	var mounts []mount.Mount
	err := s.call(fmt.Sprintf("View %q on %.40s", key, sn.key), func(ctx context.Context, n Snapshotter) (err error) {
		mounts, err = n.View(ctx, key, sn.key)
		return err
	})
	if err != nil {
		return fmt.Errorf("View: %w", err)
	}
	s.m.setExists(key, there)
	dir := filepath.Join(s.dir, "v"+fmt.Sprint(s.nextDir()))
	if err = mountAt(mounts, dir); err == nil {
		err = s.checkTree("view of "+sn.key, dir, sn.files, false)
		s.note("read all of a view on %.40s: %v", sn.key, err)
		err = errors.Join(err, unix.Unmount(dir, unix.MNT_DETACH))
	}
	s.remove(key)
	return err
}

// reindex puts a new index of a layer into the store, or takes it away.
func (s *sequence) reindex(r *rand.Rand) {
	l := theLayers[r.IntN(unindexed)]
	s.m.mu.Lock()
	defer s.m.mu.Unlock()
	layout := r.IntN(len(layouts) + 1)
	var err error
	if layout == len(layouts) {
		if s.flavour == power { // containerd would unpack it
			return
		}
		s.m.indexed[l] = false
		s.m.drops++
		err = l.dropIndex(s.root)
	} else if err = l.putIndex(s.root, layout); err == nil {
		s.m.indexed[l] = true
	}
	s.note("index of %s is layout %d: %v", l.name, layout, err)
	if err != nil && !s.down.Load() {
		s.fail(wrongState, "index: %v", err)
	}
}

// probe makes calls that must fail.
func (s *sequence) probe(r *rand.Rand) {
	s.m.protocol.Lock()
	defer s.m.protocol.Unlock()
	expect := func(what string, is func(error) bool, do func(context.Context, Snapshotter) error) {
		err := s.call(what, do)
		if !is(err) && !s.lenient.Load() && !s.down.Load() && !s.failed.Load() {
			s.fail(wrongCall, "%s: %v", what, err)
		}
	}
	switch r.IntN(4) {
	case 0:
		expect("Mounts of nothing", errdefs.IsNotFound, func(ctx context.Context, sn Snapshotter) error {
			_, err := sn.Mounts(ctx, "nothing")
			return err
		})
	case 1:
		expect("View on nothing", errdefs.IsNotFound, func(ctx context.Context, sn Snapshotter) error {
			_, err := sn.View(ctx, "probe", "nothing")
			return err
		})
	case 2:
		for _, c := range s.m.committed() {
			if c.parent != "" && c.exists == there && s.m.snap(c.parent) != nil {
				expect("Remove of a parent", errdefs.IsFailedPrecondition, func(ctx context.Context, sn Snapshotter) error {
					return sn.Remove(ctx, c.parent)
				})
				return
			}
		}
	case 3:
		for _, c := range s.m.committed() {
			if c.exists == there {
				expect("Stat", func(err error) bool { return err == nil }, func(ctx context.Context, sn Snapshotter) error {
					if _, err := sn.Usage(ctx, c.key); err != nil {
						return err
					}
					info, err := sn.Stat(ctx, c.key)
					if err == nil && (info.Kind != c.kind || info.Parent != c.parent) {
						return fmt.Errorf("%+v", info)
					}
					return err
				})
				return
			}
		}
	}
}

// trouble lets the registry misbehave for a while.
func (s *sequence) trouble(r *rand.Rand) {
	if s.flavour == power { // containerd would unpack layers
		return
	}
	s.faulty.Store(true)
	s.troubled.Store(true)
	faults := []registrytest.Fault{
		registrytest.Status(503, ""), registrytest.Status(404, ""), registrytest.Status(401, ""),
		registrytest.Flip, registrytest.OtherRange, registrytest.Short(0), registrytest.Whole,
	}
	n := r.IntN(len(faults))
	s.note("the registry has trouble of kind %d", n)
	for range 1 + r.IntN(10) {
		s.reg.Fail(faults[n])
	}
}
