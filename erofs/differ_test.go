package erofs

import (
	"archive/tar"
	"bytes"
	"errors"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/pkg/archive"
	"github.com/containerd/log"

	"github.com/lacuna-snapshotter/lacuna/internal/hostcheck"
)

var (
	differCount = flag.Int("differ.count", 300, "random tars that TestRandomTars compares with containerd")
	differSeed  = flag.Uint64("differ.seed", 1, "seed of the first of them")
)

// randomTar makes a small tar in which names meet again and again.
func randomTar(t testing.TB, r *rand.Rand) []byte {
	names := []string{"a", "b", "c", "d", "e", "f", "g", "h"}
	dirs, rest := names[:3], names[3:]
	pick := func(list []string) string {
		if r.IntN(12) == 0 {
			list = names
		}
		return list[r.IntN(len(list))]
	}
	pathTo := func(last []string) string {
		p := ""
		for r.IntN(2) == 0 {
			p += pick(dirs) + "/"
		}
		p += pick(last)
		switch r.IntN(30) {
		case 0:
			p = "/" + p
		case 1:
			p = "./" + p
		case 2:
			p = "../" + p
		case 3:
			p = pick(names) + "/../" + p
		}
		return p
	}
	path := func() string { return pathTo(rest) }
	target := func() string {
		switch r.IntN(6) {
		case 0:
			return "/" + pathTo(dirs)
		case 1:
			return "../" + pathTo(dirs)
		case 2:
			return "../../" + pick(dirs)
		}
		return pathTo(names)
	}
	var files []file
	made := []string{"none"} // what hard links can lead to
	for range 1 + r.IntN(14) {
		h := hdr(path(), mode(r.Int64N(0o10000)), ids(r.IntN(3)*1000, r.IntN(3)*1000),
			mtime(time.Unix(r.Int64N(1<<33)-1<<20, r.Int64N(1e9))))
		content := ""
		switch r.IntN(20) {
		case 0, 1, 2, 3, 14, 15, 16:
			h.Typeflag, h.Name = tar.TypeDir, pathTo(dirs)
		case 4, 5:
			h.Typeflag, h.Linkname = tar.TypeLink, made[r.IntN(len(made))]
		case 6, 7:
			h.Typeflag, h.Name, h.Linkname = tar.TypeSymlink, pathTo(dirs[1:]), target()
		case 8:
			h.Typeflag, h.Devmajor, h.Devminor = tar.TypeChar, r.Int64N(2), r.Int64N(300)
		case 9:
			h.Typeflag = tar.TypeFifo
		case 10:
			h.Name = filepath.Dir(h.Name) + "/.wh." + pick(names)
		case 12:
			h.Name = filepath.Dir(h.Name) + "/.wh..wh..opq"
		default:
			made = append(made, h.Name)
			content = strings.Repeat(pick(names), r.IntN(3)*3000)
		}
		for _, x := range []string{"user.one", "user.two", "security.three", "trusted.four", "unknown.five"} {
			if r.IntN(12) == 0 {
				attr(x, pick(names))(h)
			}
		}
		if r.IntN(12) == 0 {
			attr(capability, "\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00")(h)
		}
		files = append(files, file{h, content})
	}
	return makeTar(t, files...)
}

// Random tars come out as containerd applies them on overlayfs, or are left to
// it. -differ.seed and -differ.count=1 repeat one.
func TestRandomTars(t *testing.T) {
	hostcheck.Root(t)
	if err := log.SetLevel("error"); err != nil { // not one line for each ignored attribute
		t.Fatal(err)
	}
	same, refused, left := 0, 0, 0
	for i := range *differCount {
		seed := *differSeed + uint64(i)
		layer := randomTar(t, rand.New(rand.NewPCG(seed, 0)))
		ok, err := compareLayer(t, layer)
		switch {
		case ok && err == nil:
			same++
		case ok && errors.Is(err, ErrUnsupported):
			left++
		case ok:
			refused++
		default:
			t.Errorf("seed %d: %v\n%s", seed, err, listTar(layer))
		}
		if t.Failed() {
			t.FailNow()
		}
	}
	t.Logf("%d the same, %d refused by both, %d left to containerd", same, refused, left)
	if same < *differCount/10 {
		t.Error("too few tars are compared")
	}
}

// compareLayer says whether the layer comes out as containerd applies it, or is
// refused where containerd refuses it too or the error says that it might not.
func compareLayer(t *testing.T, layer []byte) (ok bool, err error) {
	dir, err := os.MkdirTemp(t.TempDir(), "")
	if err != nil {
		return false, err
	}
	defer os.RemoveAll(dir)
	want := filepath.Join(dir, "want")
	got := filepath.Join(dir, "got")
	if err := errors.Join(os.Mkdir(want, 0o755), os.Mkdir(got, 0o755)); err != nil {
		return false, err
	}
	_, wantErr := archive.Apply(t.Context(), want, bytes.NewReader(layer), archive.WithConvertWhiteout(archive.OverlayConvertWhiteout))
	tree, err := ReadTar(t.Context(), bytes.NewReader(layer), Options{})
	if err != nil || wantErr != nil {
		agree := err != nil && (wantErr != nil || errors.Is(err, ErrUnsupported))
		return agree, fmt.Errorf("%w; containerd: %w", errors.Join(err, errors.New("refused")), errors.Join(wantErr, errors.New("or not")))
	}
	bootstrap, blob := build(t, layer, dir)
	if err := Mount(bootstrap, blob, got); err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, Unmount(got)) }()
	skip := map[string]bool{} // times of the moment at which containerd made them
	unknownTimes(tree.root, "", skip)
	g, w := survey(t, got, skip), survey(t, want, skip)
	if !maps.Equal(g, w) {
		var diff strings.Builder
		for _, name := range slices.Sorted(maps.Keys(w)) {
			if g[name] != w[name] {
				fmt.Fprintf(&diff, "%q:\n got %+v\nwant %+v\n", name, g[name], w[name])
			}
		}
		return false, fmt.Errorf("%d names, containerd %d:\n%s", len(g), len(w), &diff)
	}
	return true, nil
}

func unknownTimes(n *Inode, path string, skip map[string]bool) {
	for name, c := range n.children {
		p := filepath.Join(path, name)
		if c.implied || c.Mode&ModeType == ModeChar && c.Major == 0 && c.Minor == 0 {
			skip[p] = true
		}
		unknownTimes(c, p, skip)
	}
}

// listTar shows a tar's entries.
func listTar(layer []byte) string {
	var out strings.Builder
	r := tar.NewReader(bytes.NewReader(layer))
	for {
		h, err := r.Next()
		if err != nil {
			return out.String()
		}
		fmt.Fprintf(&out, "%c %q -> %q mode %#o %d:%d size %d dev %d:%d %v %q\n", h.Typeflag, h.Name, h.Linkname, h.Mode, h.Uid, h.Gid,
			h.Size, h.Devmajor, h.Devminor, h.ModTime.UTC(), h.PAXRecords)
	}
}
