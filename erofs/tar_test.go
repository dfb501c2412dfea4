package erofs

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/pkg/archive"
	"github.com/containerd/continuity/sysx"
	goerofs "github.com/erofs/go-erofs"
	"golang.org/x/sys/unix"

	"github.com/lacuna-snapshotter/lacuna/internal/hostcheck"
)

var when = time.Unix(1700000000, 123456789)

// hdr makes a header; a name with a trailing slash is a directory.
func hdr(name string, mutate ...func(*tar.Header)) *tar.Header {
	h := &tar.Header{Name: name, Mode: 0o644, ModTime: when, Typeflag: tar.TypeReg, Format: tar.FormatPAX}
	if strings.HasSuffix(name, "/") {
		h.Typeflag, h.Mode = tar.TypeDir, 0o755
	}
	for _, m := range mutate {
		m(h)
	}
	return h
}

func typ(flag byte, target string) func(*tar.Header) {
	return func(h *tar.Header) { h.Typeflag, h.Linkname = flag, target }
}

func mode(m int64) func(*tar.Header) { return func(h *tar.Header) { h.Mode = m } }

func ids(uid, gid int) func(*tar.Header) { return func(h *tar.Header) { h.Uid, h.Gid = uid, gid } }

func mtime(t time.Time) func(*tar.Header) { return func(h *tar.Header) { h.ModTime = t } }

func device(major, minor int64) func(*tar.Header) {
	return func(h *tar.Header) { h.Devmajor, h.Devminor = major, minor }
}

func attr(name, value string) func(*tar.Header) {
	return func(h *tar.Header) {
		if h.PAXRecords == nil {
			h.PAXRecords = map[string]string{}
		}
		h.PAXRecords[xattrRecord+name] = value
	}
}

// file is a header with its content.
type file struct {
	*tar.Header
	content string
}

func makeTar(t testing.TB, files ...file) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, f := range files {
		h := *f.Header
		h.Size = int64(len(f.content))
		if err := w.WriteHeader(&h); err != nil {
			t.Fatalf("%s: %v", h.Name, err)
		}
		if _, err := io.WriteString(w, f.content); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// build writes bootstrap and blob of a tar into dir.
func build(t testing.TB, layer []byte, dir string) (bootstrap, blob string) {
	t.Helper()
	blob = filepath.Join(dir, "blob")
	bootstrap = filepath.Join(dir, "bootstrap")
	out, err := os.Create(blob)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	last := int64(-1)
	tree, err := ReadTar(t.Context(), bytes.NewReader(layer), Options{Data: func(e Extent, r io.Reader) error {
		if e.Blob <= last {
			t.Errorf("extent at %d after one at %d", e.Blob, last)
		}
		last = e.Blob
		b, err := io.ReadAll(r)
		if err != nil {
			return err
		}
		if !bytes.Equal(b, layer[e.Stream:e.Stream+e.Len]) {
			t.Errorf("extent %+v does not match the stream", e)
		}
		_, err = out.WriteAt(b, e.Blob)
		return err
	}})
	if err != nil {
		t.Fatal(err)
	}
	if err := out.Truncate(tree.BlobSize); err != nil {
		t.Fatal(err)
	}
	image, err := tree.Encode()
	if err != nil {
		t.Fatal(err)
	}
	again, err := ReadTar(t.Context(), bytes.NewReader(layer), Options{})
	if err != nil {
		t.Fatal(err)
	}
	if second, _ := again.Encode(); !bytes.Equal(image, second) {
		t.Error("two runs gave different bootstraps")
	}
	if err := Check(image, tree.BlobSize); err != nil {
		t.Errorf("own check: %v", err)
	}
	if err := os.WriteFile(bootstrap, image, 0o600); err != nil {
		t.Fatal(err)
	}
	return bootstrap, blob
}

// seen is all that a file system tells about one name.
type seen struct {
	mode      uint32
	uid, gid  uint32
	size      int64
	nlink     uint64
	rdev      uint64
	mtime     string
	target    string
	xattrs    string
	hash      string
	sameInode string // the first name of the inode
	isDir     bool
}

func survey(t *testing.T, root string, skipTimes map[string]bool) map[string]seen {
	t.Helper()
	all := map[string]seen{}
	first := map[uint64]string{}
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(root, path)
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		s := seen{mode: st.Mode, uid: st.Uid, gid: st.Gid, size: st.Size, nlink: st.Nlink, isDir: d.IsDir()}
		s.mtime = fmt.Sprint(st.Mtim.Sec, ".", st.Mtim.Nsec)
		if rel == "." || skipTimes[rel] {
			s.mtime = ""
		}
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFCHR, unix.S_IFBLK:
			s.rdev = st.Rdev
		case unix.S_IFDIR:
			s.size = 0 // a matter of the file system
		case unix.S_IFLNK:
			if s.target, err = os.Readlink(path); err != nil {
				return err
			}
		case unix.S_IFREG:
			f, err := os.Open(path)
			if err != nil {
				return err
			}
			defer f.Close()
			h := sha256.New()
			if _, err := io.Copy(h, f); err != nil {
				return err
			}
			s.hash = fmt.Sprintf("%x", h.Sum(nil))
		}
		names, err := sysx.LListxattr(path)
		if err != nil {
			return err
		}
		slices.Sort(names)
		for _, name := range names {
			v, err := sysx.LGetxattr(path, name)
			if err != nil {
				return err
			}
			s.xattrs += fmt.Sprintf("%s=%x ", name, v)
		}
		if !d.IsDir() {
			if _, ok := first[st.Ino]; !ok {
				first[st.Ino] = rel
			}
			s.sameInode = first[st.Ino]
		}
		all[rel] = s
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// checkLayer compares the kernel's view of our image with containerd's own
// application of the same tar, and asks the other readers of the format.
func checkLayer(t *testing.T, layer []byte, skipTimes ...string) {
	t.Helper()
	hostcheck.Root(t)
	dir := t.TempDir()
	bootstrap, blob := build(t, layer, dir)

	want := filepath.Join(dir, "want")
	if err := os.Mkdir(want, 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := archive.Apply(t.Context(), want, bytes.NewReader(layer), archive.WithConvertWhiteout(archive.OverlayConvertWhiteout)); err != nil {
		t.Fatal(err)
	}
	got := filepath.Join(dir, "got")
	if err := os.Mkdir(got, 0o755); err != nil {
		t.Fatal(err)
	}
	mountForTest(t, bootstrap, blob, got)

	skip := map[string]bool{}
	for _, s := range skipTimes {
		skip[s] = true
	}
	g, w := survey(t, got, skip), survey(t, want, skip)
	for name := range maps.Keys(w) {
		if _, ok := g[name]; !ok {
			t.Errorf("%q is missing", name)
		} else if g[name] != w[name] {
			t.Errorf("%q:\n got %+v\nwant %+v", name, g[name], w[name])
		}
	}
	for name := range maps.Keys(g) {
		if _, ok := w[name]; !ok {
			t.Errorf("%q is not in the tar", name)
		}
	}
	askOracles(t, bootstrap, blob)
}

func mountForTest(t testing.TB, bootstrap, blob, target string) {
	t.Helper()
	if err := Mount(bootstrap, blob, target); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := Unmount(target); err != nil {
			t.Error(err)
		}
	})
}

// askOracles runs fsck.erofs and go-erofs over the image.
func askOracles(t *testing.T, bootstrap, blob string) {
	t.Helper()
	fsck := hostcheck.Tool(t, "fsck.erofs")
	if out, err := exec.Command(fsck, "--device="+blob, bootstrap).CombinedOutput(); err != nil {
		t.Errorf("fsck.erofs: %v\n%s", err, out)
	}
	meta, err := os.Open(bootstrap)
	if err != nil {
		t.Fatal(err)
	}
	defer meta.Close()
	data, err := os.Open(blob)
	if err != nil {
		t.Fatal(err)
	}
	defer data.Close()
	image, err := goerofs.Open(meta, goerofs.WithExtraDevices(data))
	if err != nil {
		t.Fatalf("go-erofs: %v", err)
	}
	err = fs.WalkDir(image, ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		if info, err := d.Info(); err != nil || info.Size() > 64<<20 {
			return err
		}
		_, err = fs.ReadFile(image, path)
		return err
	})
	if err != nil {
		t.Errorf("go-erofs: %v", err)
	}
}

func TestLayers(t *testing.T) {
	long := strings.Repeat("n", 255)
	deep := strings.Repeat("directory/", 30)
	big := strings.Repeat("0123456789abcdef", 70000)
	cases := map[string]struct {
		files     []file
		skipTimes []string
	}{
		"empty": {},
		"plain": {files: []file{
			{hdr("./"), ""},
			{hdr("etc/"), ""},
			{hdr("./etc/passwd", mode(0o600), ids(1, 2)), "root"},
			{hdr("/absolute"), "x"},
			{hdr("empty"), ""},
			{hdr("block"), strings.Repeat("b", 4096)},
			{hdr("block1"), strings.Repeat("b", 4097)},
			{hdr("big", mode(0o4755)), big},
			{hdr("sgid/", mode(0o2775)), ""},
			{hdr("sticky/", mode(0o1777)), ""},
		}},
		"owners and times": {files: []file{
			{hdr("a", ids(65536, 70000)), ""},
			{hdr("b", ids(4294967294, 65535)), ""},
			{hdr("old", mtime(time.Unix(-5, 7))), ""},
			{hdr("far", mtime(time.Unix(9000000000, 999999999))), ""},
			{hdr("dir/", mtime(time.Unix(5, 5))), ""},
			{hdr("dir/child"), ""},
		}},
		"long names": {files: []file{
			{hdr(long), "x"},
			{hdr(deep), ""},
			{hdr(deep+"leaf", func(h *tar.Header) { h.Format = tar.FormatGNU; h.ModTime = time.Unix(1, 0) }), "y"},
			{hdr("link", typ(tar.TypeSymlink, strings.Repeat("t", 300))), ""},
			{hdr("longest", typ(tar.TypeSymlink, strings.Repeat("t/", 2047)+"t")), ""},
			{hdr("long4080", typ(tar.TypeSymlink, strings.Repeat("t", 4080))), ""},
		}, skipTimes: parents(deep)},
		"links": {files: []file{
			{hdr("a"), "content"},
			{hdr("b", typ(tar.TypeLink, "a"), ids(5, 6), mode(0o700), mtime(time.Unix(77, 0))), ""},
			{hdr("c", typ(tar.TypeLink, "/b")), ""},
			{hdr("a"), "overwritten"},
			{hdr("s", typ(tar.TypeSymlink, "a")), ""},
			{hdr("s2", typ(tar.TypeLink, "s")), ""},
			{hdr("null", typ(tar.TypeChar, ""), device(1, 3)), ""},
			{hdr("null2", typ(tar.TypeLink, "null")), ""},
			{hdr("caps", attr("security.capability", "\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00")), "x"},
			{hdr("nocaps", typ(tar.TypeLink, "caps")), ""},
		}},
		"devices": {files: []file{
			{hdr("null", typ(tar.TypeChar, ""), device(1, 3), mode(0o666)), ""},
			{hdr("disk", typ(tar.TypeBlock, ""), device(259, 70000), mode(0o660)), ""},
			{hdr("pipe", typ(tar.TypeFifo, ""), mode(0o622)), ""},
		}},
		"twice": {files: []file{
			{hdr("f"), "first"},
			{hdr("f"), "second one"},
			{hdr("d/", mode(0o700), attr("user.a", "1")), ""},
			{hdr("d/in"), "x"},
			{hdr("d/", mode(0o711), attr("user.b", "2")), ""},
			{hdr("gone/"), ""},
			{hdr("gone/child"), ""},
			{hdr("gone"), "now a file"},
			{hdr("file"), "now a directory"},
			{hdr("file/"), ""},
		}},
		"implied parents": {files: []file{
			{hdr("x/y/z"), "deep"},
			{hdr("x/", mode(0o750)), ""},
		}, skipTimes: []string{"x/y"}},
		"through symlinks": {files: []file{
			{hdr("usr/lib/"), ""},
			{hdr("lib", typ(tar.TypeSymlink, "usr/lib")), ""},
			{hdr("lib/libc.so"), "elf"},
			{hdr("abs", typ(tar.TypeSymlink, "/usr/lib")), ""},
			{hdr("abs/abs.so"), "elf"},
			{hdr("up", typ(tar.TypeSymlink, "../../../usr")), ""},
			{hdr("up/share/doc"), "text"},
			{hdr("dangling", typ(tar.TypeSymlink, "no/where")), ""},
			{hdr("dangling/f"), "made"},
			{hdr("hard", typ(tar.TypeLink, "lib/libc.so")), ""},
		}, skipTimes: []string{"usr", "usr/share", "no", "no/where"}},
		"traversal": {files: []file{
			{hdr("../../etc/evil"), "contained"},
			{hdr("a/../../b"), "contained"},
			{hdr("out", typ(tar.TypeSymlink, "../../../../..")), ""},
			{hdr("out/tmp/evil"), "contained"},
		}, skipTimes: []string{"etc", "tmp"}},
		"whiteouts": {files: []file{
			{hdr("d/"), ""},
			{hdr("d/.wh.file", ids(3, 4), mtime(time.Unix(0, 0))), ""},
			{hdr(".wh.top", mtime(time.Unix(0, 0))), ""},
			{hdr("opaque/"), ""},
			{hdr("opaque/.wh..wh..opq"), ""},
			{hdr("opaque/kept"), "x"},
			{hdr(".wh.back"), ""},
			{hdr("back"), "again"},
		}, skipTimes: []string{"d/file", "top"}},
		"xattrs": {files: []file{
			{hdr("a", attr("user.one", "1"), attr("user.two", strings.Repeat("v", 2000))), "x"},
			{hdr("b", attr("user.one", "1"), attr("security.capability", "\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00")), "x"},
			{hdr("c", attr("trusted.no", "1"), attr("user.one", "1")), "x"},
			{hdr("d/", attr("user.one", "1"), attr("user.empty", "")), ""},
			{hdr("s", typ(tar.TypeSymlink, "a"), attr("user.one", "1")), ""},
			{hdr("p", typ(tar.TypeFifo, ""), attr("user.one", "1")), ""},
			{hdr("acl/", attr("system.posix_acl_default", "\x02\x00\x00\x00\x01\x00\x07\x00\xff\xff\xff\xff\x04\x00\x05\x00\xff\xff\xff\xff\x20\x00\x05\x00\xff\xff\xff\xff")), ""},
			{hdr("aclf", mode(0o640), attr("system.posix_acl_access", "\x02\x00\x00\x00\x01\x00\x06\x00\xff\xff\xff\xff\x02\x00\x04\x00\x05\x00\x00\x00\x04\x00\x04\x00\xff\xff\xff\xff\x10\x00\x04\x00\xff\xff\xff\xff\x20\x00\x00\x00\xff\xff\xff\xff")), ""},
		}},
		"directory sizes": {files: directorySizes()},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) { checkLayer(t, makeTar(t, tc.files...), tc.skipTimes...) })
	}
}

// parents lists a path's leading directories.
func parents(path string) (list []string) {
	for p := filepath.Dir(strings.TrimSuffix(path, "/")); p != "."; p = filepath.Dir(p) {
		list = append(list, p)
	}
	return list
}

// directorySizes makes directories whose entries end near every kind of border.
func directorySizes() (files []file) {
	for n := range 40 {
		dir := fmt.Sprintf("d%d/", n)
		files = append(files, file{hdr(dir), ""})
		for i := range n * 9 {
			files = append(files, file{hdr(fmt.Sprintf("%s%d-%s", dir, i, strings.Repeat("x", i%40)), typ(tar.TypeSymlink, "t")), ""})
		}
	}
	return files
}

func TestLargeDirectory(t *testing.T) {
	var files []file
	for i := range 100000 {
		files = append(files, file{hdr(fmt.Sprintf("d/%06d", i), func(h *tar.Header) { h.Format = tar.FormatUSTAR; h.ModTime = time.Unix(5, 0) }), ""})
	}
	checkLayer(t, makeTar(t, files...), "d")
}

func TestLargeFile(t *testing.T) {
	// 4 GiB and a bit, of which the tar holds little: the sparse path, and the
	// sizes above 32 bits.
	checkSparse(t, "posix", "1.0", 4<<30+4096*3+5)
}

func TestSparse(t *testing.T) {
	for _, f := range [][2]string{{"posix", "0.0"}, {"posix", "0.1"}, {"posix", "1.0"}} {
		t.Run(f[0]+f[1], func(t *testing.T) { checkSparse(t, f[0], f[1], 40<<20) })
	}
}

func checkSparse(t *testing.T, format, version string, size int64) {
	hostcheck.Root(t)
	src := t.TempDir()
	path := filepath.Join(src, "sparse")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for i := range int64(30) {
		if _, err := f.WriteAt([]byte(strings.Repeat(fmt.Sprint(i), 3000)), i*i*(size/1000)/4096*4096); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string]string{"after": "plain", "hole": ""} {
		if err := os.WriteFile(filepath.Join(src, name), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Truncate(filepath.Join(src, "hole"), 1<<20); err != nil {
		t.Fatal(err)
	}
	args := []string{"--sparse", "--format=" + format, "-C", src, "-cf", "-", "sparse", "hole", "after"}
	if version != "" {
		args = append([]string{"--sparse-version=" + version}, args...)
	}
	layer, err := exec.Command(hostcheck.Tool(t, "tar"), args...).Output()
	if err != nil {
		t.Fatal(err)
	}
	if int64(len(layer)) > size/2 {
		t.Fatalf("tar made no sparse archive: %d bytes", len(layer))
	}
	dir := t.TempDir()
	bootstrap, blob := build(t, layer, dir)
	got := filepath.Join(dir, "got")
	if err := os.Mkdir(got, 0o755); err != nil {
		t.Fatal(err)
	}
	mountForTest(t, bootstrap, blob, got)
	for _, name := range []string{"sparse", "hole", "after"} {
		if out, err := exec.Command(hostcheck.Tool(t, "cmp"), filepath.Join(src, name), filepath.Join(got, name)).CombinedOutput(); err != nil {
			t.Errorf("%s: %v %s", name, err, out)
		}
	}
	if st, err := os.Stat(blob); err != nil || st.Size() > size/2 {
		t.Errorf("blob has %d bytes for %d of data: %v", st.Size(), len(layer), err)
	}
	askOracles(t, bootstrap, blob)
}

func TestReadTarRefuses(t *testing.T) {
	layer := makeTar(t, file{hdr("a"), strings.Repeat("x", 2000)}, file{hdr("b"), "y"})
	loop := []file{{hdr("l", typ(tar.TypeSymlink, "l")), ""}, {hdr("l/x"), ""}}
	for name, tc := range map[string]struct {
		layer []byte
		opts  Options
		want  error
	}{
		"truncated header":   {layer: layer[:100], want: io.ErrUnexpectedEOF},
		"truncated content":  {layer: layer[:1800], want: io.ErrUnexpectedEOF},
		"not a tar":          {layer: bytes.Repeat([]byte("garbage"), 1000), want: tar.ErrHeader},
		"too many files":     {layer: layer, opts: Options{Limits: Limits{Inodes: 1, XattrSize: 1, BlobSize: 1 << 20}}, want: ErrInvalid},
		"too much data":      {layer: layer, opts: Options{Limits: Limits{Inodes: 9, XattrSize: 1, BlobSize: 1000}}, want: ErrInvalid},
		"symlink loop":       {layer: makeTar(t, loop...), want: ErrInvalid},
		"file as directory":  {layer: makeTar(t, file{hdr("f"), "x"}, file{hdr("f/x"), "x"}), want: ErrInvalid},
		"name too long":      {layer: makeTar(t, file{hdr(strings.Repeat("n", 256)), ""}), want: ErrInvalid},
		"path too long":      {layer: makeTar(t, file{hdr(strings.Repeat("n/", 3000) + "f"), ""}), want: ErrInvalid},
		"link to nothing":    {layer: makeTar(t, file{hdr("l", typ(tar.TypeLink, "none")), ""}), want: ErrInvalid},
		"link to itself":     {layer: makeTar(t, file{hdr("l"), ""}, file{hdr("l", typ(tar.TypeLink, "l")), ""}), want: ErrInvalid},
		"link to directory":  {layer: makeTar(t, file{hdr("d/"), ""}, file{hdr("l", typ(tar.TypeLink, "d")), ""}), want: ErrInvalid},
		"whiteout of parent": {layer: makeTar(t, file{hdr("d/.wh..."), ""}), want: ErrInvalid},
		"large xattrs":       {layer: makeTar(t, file{hdr("x", attr("user.x", strings.Repeat("v", 70000))), ""}), want: ErrInvalid},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := ReadTar(t.Context(), bytes.NewReader(tc.layer), tc.opts); !errors.Is(err, tc.want) {
				t.Errorf("got %v, want %v", err, tc.want)
			}
		})
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := ReadTar(ctx, bytes.NewReader(layer), Options{}); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

func TestImpliedDirectoriesCanBeGivenAttributes(t *testing.T) {
	layer := makeTar(t, file{hdr("tmp/x"), ""})
	tree, err := ReadTar(t.Context(), bytes.NewReader(layer), Options{Implied: func(path string, dir *Inode) {
		if path == "tmp" {
			dir.Mode |= 0o1777
		}
	}})
	if err != nil {
		t.Fatal(err)
	}
	if got := tree.Lookup("tmp").Mode; got != ModeDir|0o1777 {
		t.Errorf("mode %#o", got)
	}
}

func TestOneChunkIndexPerFile(t *testing.T) {
	layer := makeTar(t, file{hdr("f"), strings.Repeat("x", 3<<20)})
	tree, err := ReadTar(t.Context(), bytes.NewReader(layer), Options{})
	if err != nil {
		t.Fatal(err)
	}
	out, err := tree.Encode()
	if err != nil {
		t.Fatal(err)
	}
	m, err := Open(out)
	if err != nil {
		t.Fatal(err)
	}
	err = m.Walk(func(path string, info *FileInfo) error {
		if path == "f" && len(info.Chunks) != 1 {
			t.Errorf("%d chunks", len(info.Chunks))
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

