package index

import (
	"archive/tar"
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/containerd/v2/pkg/archive"
	"github.com/containerd/continuity/sysx"
	"golang.org/x/sys/unix"

	"github.com/lacuna-snapshotter/lacuna/erofs"
	"github.com/lacuna-snapshotter/lacuna/internal/hostcheck"
)

// A directory that a layer only implies takes its attributes from the layers
// below, as containerd's apply with parents does it.
func TestImpliedDirectories(t *testing.T) {
	hostcheck.Root(t)
	dir := func(name string, mode int64, uid int, xattrs ...string) *tar.Header {
		h := &tar.Header{Name: name, Typeflag: tar.TypeDir, Mode: mode, Uid: uid, Gid: uid + 1, Format: tar.FormatPAX, PAXRecords: map[string]string{}}
		for _, x := range xattrs {
			h.PAXRecords["SCHILY.xattr."+x] = "value"
		}
		return h
	}
	reg := func(name string) *tar.Header { return &tar.Header{Name: name, Mode: 0o644} }
	layers := [][]*tar.Header{
		{dir("a", 0o1777, 5, "user.one"), dir("a/b", 0o700, 6), dir("file", 0o711, 7), dir("gone", 0o711, 8), dir("opaque", 0o711, 9)},
		{dir("a/b", 0o750, 10, "user.two", "security.three"), reg("file"), reg(".wh.gone"), reg("opaque/.wh..wh..opq")},
		{reg("a/b/c/f"), reg("file/f"), reg("gone/f"), reg("opaque/f"), reg("new/f")},
	}
	below := directories{}
	var parents []string
	for i, headers := range layers {
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		for _, h := range headers {
			if err := w.WriteHeader(h); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		want := t.TempDir()
		if _, err := archive.Apply(t.Context(), want, bytes.NewReader(b.Bytes()),
			archive.WithConvertWhiteout(archive.OverlayConvertWhiteout), archive.WithParents(parents)); err != nil {
			t.Fatal(err)
		}
		parents = append([]string{want}, parents...)
		tree, err := erofs.ReadTar(t.Context(), bytes.NewReader(b.Bytes()), erofs.Options{Implied: below.apply})
		if err != nil {
			t.Fatal(err)
		}
		bootstrap, err := tree.Encode()
		if err != nil {
			t.Fatal(err)
		}
		compareAttributes(t, i, want, bootstrap)
		if err := below.add(bootstrap); err != nil {
			t.Fatal(err)
		}
	}
}

func compareAttributes(t *testing.T, layer int, want string, bootstrap []byte) {
	t.Helper()
	m, err := erofs.Open(bootstrap)
	if err != nil {
		t.Fatal(err)
	}
	err = m.Walk(func(path string, f *erofs.FileInfo) error {
		if path == "" {
			return nil
		}
		name := filepath.Join(want, path)
		var st unix.Stat_t
		if err := unix.Lstat(name, &st); err != nil {
			return &os.PathError{Op: "lstat", Path: name, Err: err}
		}
		if st.Mode != uint32(f.Mode) || st.Uid != f.UID || st.Gid != f.GID {
			t.Errorf("layer %d: %s has mode %#o, owner %d:%d, containerd makes %#o, %d:%d", layer, path, f.Mode, f.UID, f.GID, st.Mode, st.Uid, st.Gid)
		}
		names, err := sysx.LListxattr(name)
		if err != nil {
			return err
		}
		got := map[string]bool{}
		for _, x := range f.Xattrs {
			got[x.Name] = true
		}
		for _, n := range names {
			if !got[n] {
				t.Errorf("layer %d: %s lacks %s", layer, path, n)
			}
		}
		if len(names) != len(got) {
			t.Errorf("layer %d: %s has %v, containerd sets %v", layer, path, got, names)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
