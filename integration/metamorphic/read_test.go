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
	"golang.org/x/sys/unix"

	"github.com/lacuna-snapshotter/lacuna/fetcher/layertest"
)

// judge makes a reader's error a failure, unless reads may fail at present.
func (s *sequence) judge(c *container, where string, err error) {
	if err != nil && !s.failed.Load() && !s.down.Load() && !s.faulty.Load() && !c.removed {
		s.fail(readError, "%s: %v", where, err)
	}
}

// readSome reads a few files.
func (s *sequence) readSome(r *rand.Rand) {
	c := s.some(r, (*container).known)
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
	c := s.some(r, (*container).known)
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
