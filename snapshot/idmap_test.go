package snapshot_test

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"golang.org/x/sys/unix"

	"github.com/lacuna-snapshotter/lacuna/fetcher/layertest"
	"github.com/lacuna-snapshotter/lacuna/fetcher/registry/registrytest"
	"github.com/lacuna-snapshotter/lacuna/snapshot/snapshottest"
)

func stopForTest(t *testing.T, n *snapshottest.Node) {
	if err := n.TearDown(); err != nil {
		t.Error(err)
	}
}

// ownedImage has two layers of files with many owners.
func ownedImage(t *testing.T, n *snapshottest.Node) *snapshottest.Image {
	t.Helper()
	img := &snapshottest.Image{Reg: registrytest.New(t)}
	for _, files := range [][]tar.Header{
		{
			{Typeflag: tar.TypeDir, Name: "dir/", Mode: 0o755, Uid: 1000, Gid: 2000},
			{Typeflag: tar.TypeReg, Name: "dir/file", Mode: 0o644, Uid: 1000, Gid: 2000},
			{Typeflag: tar.TypeReg, Name: "suid", Mode: 0o4755},
			{Typeflag: tar.TypeChar, Name: "null", Mode: 0o666, Devmajor: 1, Devminor: 3},
			{Typeflag: tar.TypeSymlink, Name: "link", Linkname: "suid", Mode: 0o777, Uid: 5, Gid: 6},
		},
		{
			{Typeflag: tar.TypeDir, Name: "dir/", Mode: 0o755, Uid: 1000, Gid: 2000},
			{Typeflag: tar.TypeReg, Name: "dir/second", Mode: 0o600, Uid: 1001, Gid: 65534},
		},
	} {
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		for _, h := range files {
			if err := w.WriteHeader(&h); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		img.Tars = append(img.Tars, b.Bytes())
		img.Layers = append(img.Layers, layertest.Gzip(t, b.Bytes()))
		img.Reg.AddBlob(img.Layers[len(img.Layers)-1])
		img.Index(t, n, len(img.Layers)-1)
	}
	return img
}

// unpackOn makes an ordinary committed snapshot with a file, as containerd's unpack
// does.
func unpackOn(t *testing.T, ctx context.Context, n *snapshottest.Node, name, parent, file string, uid, gid int) {
	t.Helper()
	mounts, err := n.Prepare(ctx, "unpack-"+name, parent)
	if err != nil {
		t.Fatal(err)
	}
	withMounted(t, mounts, func(dir string) {
		path := filepath.Join(dir, file)
		if err := os.WriteFile(path, nil, 0o644); err != nil {
			t.Fatal(err)
		}
		if err := os.Lchown(path, uid, gid); err != nil {
			t.Fatal(err)
		}
	})
	if err := n.Commit(ctx, name, "unpack-"+name); err != nil {
		t.Fatal(err)
	}
}

// withMounted mounts as containerd does.
func withMounted(t *testing.T, mounts []mount.Mount, f func(dir string)) {
	t.Helper()
	dir := t.TempDir()
	mounts = slices.Clone(mounts)
	for i := range mounts { // containerd writes to them where it maps
		mounts[i].Options = slices.Clone(mounts[i].Options)
	}
	if err := mount.All(mounts, dir); err != nil {
		t.Fatalf("mount %+v: %v", mounts, err)
	}
	defer func() {
		if err := mount.UnmountAll(dir, 0); err != nil {
			t.Error(err)
		}
	}()
	f(dir)
}

// owners lists who owns what is mounted.
func owners(t *testing.T, mounts []mount.Mount) string {
	t.Helper()
	var b strings.Builder
	withMounted(t, mounts, func(dir string) {
		err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			var st unix.Stat_t
			if err := unix.Lstat(path, &st); err != nil {
				return err
			}
			fmt.Fprintf(&b, "/%s %d:%d\n", strings.TrimPrefix(path[len(dir):], "/"), st.Uid, st.Gid)
			return nil
		})
		if err != nil {
			t.Error(err)
		}
	})
	return b.String()
}

const (
	pieces = 20 // of a mapping
	deep   = 20 // unpacked layers
)

// usernsMappings are mappings of user namespaces. host is the host's ID for an ID of the
// container.
var usernsMappings = []struct {
	name, label string
	host        func(id int) int
}{
	{"moved", "0:100000:65536", func(id int) int { return 100000 + id }},
	{"moved a little", "0:1000:65536", func(id int) int { return 1000 + id }}, // onto IDs of the image
	{"root stays", "0:0:1,1:300001:65535", func(id int) int {
		if id == 0 {
			return 0
		}
		return 300000 + id
	}},
	{"none", "0:0:65536", func(id int) int { return id }},
	{"in pieces", manyRanges(pieces, 400000) + fmt.Sprintf(",%d:%d:%d", pieces, 500000+pieces, 65536-pieces), func(id int) int {
		if id < pieces {
			return 400000 + id
		}
		return 500000 + id
	}},
}

// chains are the kinds of parents that a container's snapshot may have.
var chains = []struct {
	name, parent string
	files        []ownedFile
}{
	{"nothing", "", nil},
	{"one lazy layer", "chain0", baseFiles},
	{"two lazy layers", "chain1", secondFiles},
	{"a mix", "mix", append([]ownedFile{{"/unpacked", 33, 44}}, secondFiles...)},
	{"one unpacked layer", "base", []ownedFile{{"/base", 7, 8}}},
	{"many unpacked layers", fmt.Sprint("unpacked", deep-1), append([]ownedFile{{"/base", 7, 8}}, deepFiles()...)},
}

type ownedFile struct {
	path     string
	uid, gid int
}

var (
	baseFiles   = []ownedFile{{"/dir", 1000, 2000}, {"/dir/file", 1000, 2000}, {"/link", 5, 6}, {"/null", 0, 0}, {"/suid", 0, 0}}
	secondFiles = append([]ownedFile{{"/dir/second", 1001, 65534}}, baseFiles...)
)

func deepFiles() (list []ownedFile) {
	for i := range deep {
		list = append(list, ownedFile{fmt.Sprint("/f", i), i, 2 * i})
	}
	return list
}

// prepareChains makes them on a node.
func prepareChains(t *testing.T, ctx context.Context, n *snapshottest.Node) {
	t.Helper()
	snapshottest.PrepareAll(t, ctx, n, ownedImage(t, n))
	unpackOn(t, ctx, n, "mix", "chain1", "unpacked", 33, 44)
	unpackOn(t, ctx, n, "base", "", "base", 7, 8)
	parent := "base"
	for i := range deep {
		name := fmt.Sprint("unpacked", i)
		unpackOn(t, ctx, n, name, parent, fmt.Sprint("f", i), i, 2*i)
		parent = name
	}
}

// checkOwners compares every file's owner with its image's, mapped.
func checkOwners(t *testing.T, mounts []mount.Mount, files []ownedFile, host func(int) int) {
	t.Helper()
	got := owners(t, mounts)
	want := append([]ownedFile{{"/", 0, 0}}, files...)
	if n := strings.Count(got, "\n"); n != len(want) {
		t.Errorf("%d files, not %d:\n%s", n, len(want), got)
	}
	for _, f := range want {
		if line := fmt.Sprintf("%s %d:%d\n", f.path, host(f.uid), host(f.gid)); !strings.Contains("\n"+got, "\n"+line) {
			t.Errorf("no %sin\n%s", line, got)
		}
	}
}

// TestMappedOwners mounts snapshots of each kind in each mapping.
func TestMappedOwners(t *testing.T) {
	snapshottest.NeedFanotify(t)
	ctx := namespaces.WithNamespace(t.Context(), "test")
	root := t.TempDir()
	n := snapshottest.New(t, root)
	t.Cleanup(func() { stopForTest(t, n) })
	prepareChains(t, ctx, n)
	// containerd id-maps whole trees of mounts, and not every file system allows it:
	// the mount of the transport fuse, below the root, does not.
	unmappable := filepath.Join(root, "fuse")
	if err := os.Mkdir(unmappable, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("proc", unmappable, "proc", unix.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(unmappable, 0); err != nil {
			t.Error(err)
		}
	})
	for _, c := range chains {
		for _, m := range usernsMappings {
			t.Run(c.name+"/"+m.name, func(t *testing.T) {
				key := t.Name()
				mounts, err := n.Prepare(ctx, key, c.parent, mappingLabels(m.label, m.label))
				if err != nil {
					t.Fatal(err)
				}
				checkOwners(t, mounts, c.files, m.host)
				if mounts, err = n.Mounts(ctx, key); err != nil {
					t.Fatal(err)
				}
				withMounted(t, mounts, func(dir string) { // as root of the container, by number
					for _, f := range c.files {
						path := filepath.Join(dir, f.path)
						if err := os.Lchown(path, m.host(9), m.host(10)); err != nil {
							t.Errorf("copy up: %v", err)
						}
					}
				})
				changed := make([]ownedFile, len(c.files))
				for i, f := range c.files {
					changed[i] = ownedFile{f.path, 9, 10}
				}
				checkOwners(t, mounts, changed, m.host)
				view, err := n.View(ctx, key+"-view", c.parent, mappingLabels(m.label, m.label))
				if err != nil {
					t.Fatal(err)
				}
				checkOwners(t, view, c.files, m.host)
				withMounted(t, view, func(dir string) {
					if err := os.WriteFile(filepath.Join(dir, "new"), nil, 0o600); err == nil {
						t.Error("a view can be written to")
					}
				})
			})
		}
	}
}

// TestRemappedParent does what containerd's client does where the proxy plugin lacks the
// capability remap-ids: it creates a parent in which each file has the owner of the
// host, and on that the container's snapshot with the labels.
func TestRemappedParent(t *testing.T) {
	snapshottest.NeedFanotify(t)
	ctx := namespaces.WithNamespace(t.Context(), "test")
	n := snapshottest.New(t, t.TempDir())
	t.Cleanup(func() { stopForTest(t, n) })
	prepareChains(t, ctx, n)
	for _, c := range chains {
		if c.parent == "" {
			continue
		}
		for i, m := range usernsMappings {
			t.Run(c.name+"/"+m.name, func(t *testing.T) {
				// Keys as containerd's metadata store passes them on.
				key := fmt.Sprintf("default/%d/sha256:%s-%d", i, c.parent, i)
				name := fmt.Sprintf("default/%d/sha256:%s-%d", i+1, c.parent, i)
				mounts, err := n.Prepare(ctx, key+"-remap", c.parent)
				if err != nil {
					t.Fatal(err)
				}
				withMounted(t, mounts, func(dir string) { chownAll(t, dir, m.host) })
				if err := n.Commit(ctx, name, key+"-remap"); err != nil {
					t.Fatal(err)
				}
				mounts, err = n.Prepare(ctx, t.Name(), name, mappingLabels(m.label, m.label))
				if err != nil {
					t.Fatal(err)
				}
				checkOwners(t, mounts, c.files, m.host)
				view, err := n.View(ctx, t.Name()+"-view", name, mappingLabels(m.label, m.label))
				if err != nil {
					t.Fatal(err)
				}
				checkOwners(t, view, c.files, m.host)
				// ctr run without --remap-labels gives no labels at all.
				if mounts, err = n.Prepare(ctx, t.Name()+"-plain", name); err != nil {
					t.Fatal(err)
				}
				checkOwners(t, mounts, c.files, m.host)
			})
		}
	}
}

func chownAll(t *testing.T, dir string, host func(int) int) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		return os.Lchown(path, host(int(st.Uid)), host(int(st.Gid)))
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestViewFlags mounts a view of one layer, which is a bind of our own mount. That
// ignores set-user-ID bits and device nodes, and the view must not.
func TestViewFlags(t *testing.T) {
	snapshottest.NeedFanotify(t)
	ctx := namespaces.WithNamespace(t.Context(), "test")
	n := snapshottest.New(t, t.TempDir())
	t.Cleanup(func() { stopForTest(t, n) })
	img := ownedImage(t, n)
	snapshottest.PrepareAll(t, ctx, n, img)
	flags := func(path string) int64 {
		var st unix.Statfs_t
		if err := unix.Statfs(path, &st); err != nil {
			t.Fatal(err)
		}
		return st.Flags & (unix.ST_NOSUID | unix.ST_NODEV | unix.ST_NOEXEC | unix.ST_RDONLY)
	}
	if got := flags(n.Mountpoint(t, img.Layers[0])); got != unix.ST_NOSUID|unix.ST_NODEV|unix.ST_RDONLY {
		t.Errorf("the layer's mountpoint has flags %#x", got)
	}
	for _, label := range []string{"", "0:100000:65536"} {
		mounts, err := n.View(ctx, "view"+label, "chain0", mappingLabels(label, label))
		if err != nil {
			t.Fatal(err)
		}
		withMounted(t, mounts, func(dir string) {
			if got := flags(dir); got != unix.ST_RDONLY {
				t.Errorf("mapping %q: the view has flags %#x", label, got)
			}
			f, err := os.OpenFile(filepath.Join(dir, "null"), os.O_RDWR, 0)
			if err != nil {
				t.Errorf("mapping %q: %v", label, err)
				return
			}
			f.Close()
		})
	}
}
