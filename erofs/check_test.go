package erofs

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/lacuna-snapshotter/lacuna/internal/hostcheck"
)

// exampleLayer has one of everything that a bootstrap can have.
func exampleLayer(t testing.TB) []byte {
	acl := "\x02\x00\x00\x00\x01\x00\x06\x00\xff\xff\xff\xff\x02\x00\x04\x00\x05\x00\x00\x00\x04\x00\x04\x00\xff\xff\xff\xff\x10\x00\x04\x00\xff\xff\xff\xff\x20\x00\x00\x00\xff\xff\xff\xff"
	files := []file{
		{hdr("a", ids(3, 4), attr("user.shared", "value"), attr("user.own", "v")), "content of a"},
		{hdr("b", attr("user.shared", "value"), attr("security.capability", "\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00")), strings.Repeat("b", 9000)},
		{hdr("acl", mode(0o640), attr("system.posix_acl_access", acl)), "x"},
		{hdr("empty"), ""},
		{hdr("link", typ(tar.TypeLink, "a")), ""},
		{hdr("short", typ(tar.TypeSymlink, "a")), ""},
		{hdr("long", typ(tar.TypeSymlink, strings.Repeat("t", 4090))), ""},
		{hdr("null", typ(tar.TypeChar, ""), device(1, 3)), ""},
		{hdr("disk", typ(tar.TypeBlock, ""), device(259, 70000)), ""},
		{hdr("pipe", typ(tar.TypeFifo, "")), ""},
		{hdr(".wh.gone"), ""},
		{hdr("opaque/.wh..wh..opq"), ""},
		{hdr("dir/"), ""},
	}
	for i := range 300 {
		files = append(files, file{hdr(fmt.Sprintf("dir/name %d", i), typ(tar.TypeLink, "empty")), ""})
	}
	return makeTar(t, files...)
}

// mend writes the checksum, which would shield everything behind it.
func mend(image []byte) []byte {
	binary.LittleEndian.PutUint32(image[superOffset+sbChecksum:], superChecksum(image))
	return image
}

// interpret tells of an image what survey tells of a mount.
func interpret(image, blob []byte) (map[string]seen, error) {
	m, err := Open(image)
	if err != nil {
		return nil, err
	}
	all := map[string]seen{}
	first := map[uint64]string{}
	err = m.Walk(func(path string, f *FileInfo) error {
		if path == "" {
			path = "."
		}
		s := seen{mode: uint32(f.Mode), uid: f.UID, gid: f.GID, size: f.Size, nlink: uint64(f.Nlink), target: f.Target}
		s.mtime = fmt.Sprint(f.Mtime.Sec, ".", f.Mtime.Nsec)
		switch f.Mode & ModeType {
		case ModeDir:
			s.isDir, s.size = true, 0
		case ModeChar, ModeBlock:
			s.rdev = unix.Mkdev(f.Rdev>>8&0xfff, f.Rdev&0xff|f.Rdev>>12&0xfff00)
		case ModeRegular:
			content := make([]byte, f.Size)
			for i, addr := range f.Chunks {
				if addr != nullBlock {
					at := int64(i) * f.ChunkSize
					copy(content[at:min(f.Size, at+f.ChunkSize)], blob[int64(addr)*BlockSize:])
				}
			}
			s.hash = fmt.Sprintf("%x", sha256.Sum256(content))
		}
		if path == "." {
			s.mtime = ""
		}
		slices.SortStableFunc(f.Xattrs, func(a, b Xattr) int { return strings.Compare(a.Name, b.Name) })
		for _, x := range f.Xattrs {
			s.xattrs += fmt.Sprintf("%s=%x ", x.Name, x.Value)
		}
		if !s.isDir {
			if _, ok := first[f.Nid]; !ok {
				first[f.Nid] = path
			}
			s.sameInode = first[f.Nid]
		}
		all[path] = s
		return nil
	})
	return all, err
}

var checkEvery = flag.Int("check.every", 40, "mount every one of so many changed bootstraps that Check accepts")

// Whatever one byte of a bootstrap is changed to, Check refuses it or the kernel
// sees what Walk sees.
func TestCheckSeesWhatTheKernelSees(t *testing.T) {
	hostcheck.Root(t)
	dir := t.TempDir()
	bootstrap, blobPath := build(t, exampleLayer(t), dir)
	image, err := os.ReadFile(bootstrap)
	if err != nil {
		t.Fatal(err)
	}
	blob, err := os.ReadFile(blobPath)
	if err != nil {
		t.Fatal(err)
	}
	target := filepath.Join(dir, "mnt")
	if err := os.Mkdir(target, 0o700); err != nil {
		t.Fatal(err)
	}
	accepted, refused := 0, 0
	for at := superOffset; at < len(image); at++ {
		if string(image[at:at+min(8, len(image)-at)]) == "tttttttt" { // the long symlink: any target will do
			continue
		}
		for _, flip := range []byte{0x01, 0x80, 0xff} {
			changed := bytes.Clone(image)
			changed[at] ^= flip
			if at < superOffset+4 || at >= superOffset+8 {
				mend(changed)
			}
			if err := Check(changed, int64(len(blob))); err != nil {
				if !errors.Is(err, ErrInvalid) {
					t.Fatal(err)
				}
				refused++
				continue
			}
			accepted++
			if accepted%*checkEvery != 0 {
				continue
			}
			want, err := interpret(changed, blob)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(bootstrap, changed, 0o600); err != nil {
				t.Fatal(err)
			}
			if err := Mount(bootstrap, blobPath, target); err != nil {
				t.Fatalf("byte %d changed by %#x: %v", at, flip, err)
			}
			got := survey(t, target, nil)
			if err := Unmount(target); err != nil {
				t.Fatal(err)
			}
			if !maps.Equal(got, want) {
				t.Fatalf("byte %d changed by %#x:\n got %+v\nwant %+v", at, flip, got, want)
			}
		}
	}
	t.Logf("%d changes accepted, %d refused", accepted, refused)
	if accepted == 0 || refused == 0 {
		t.Error("the test does not test")
	}
}

// Every field of the superblock and the device slot has one value only, but for
// the numbers that are checked against the rest.
func TestCheckSuperblock(t *testing.T) {
	tree, err := ReadTar(t.Context(), bytes.NewReader(exampleLayer(t)), Options{})
	if err != nil {
		t.Fatal(err)
	}
	image, err := tree.Encode()
	if err != nil {
		t.Fatal(err)
	}
	for name, at := range map[string]int{
		"before": -1, "feature_compat": 9, "sb_extslots": 13, "root_nid": 14, "inos": 16, "build_time": 24, "build_time_nsec": 32,
		"blocks": 36, "meta_blkaddr": 40, "xattr_blkaddr": 44, "uuid": 48, "volume_name": 64, "feature_incompat": 81,
		"lz4_max_distance": 84, "extra_devices": 86, "devt_slotoff": 88, "dirblkbits": 90, "xattr_prefix_count": 91,
		"xattr_prefix_start": 92, "packed_nid": 96, "xattr_filter_reserved": 104, "ishare_xattr_prefix_id": 105,
		"build_time 48-bit": 108, "rootnid_8b": 112, "reserved2": 120, "tag": 128, "device blocks": 192, "uniaddr": 196,
		"blocks_hi": 200, "uniaddr_hi": 204, "slot's end": 255,
	} {
		changed := bytes.Clone(image)
		changed[superOffset+at] ^= 0x02
		if err := Check(mend(changed), tree.BlobSize); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// What is wrong between inodes, which no single field tells.
func TestCheckTree(t *testing.T) {
	small := makeTar(t, file{hdr("d/"), ""}, file{hdr("d/e/"), ""}, file{hdr("f"), "x"}, file{hdr("g", typ(tar.TypeLink, "f")), ""},
		file{hdr("s", typ(tar.TypeSymlink, "target")), ""})
	for name, change := range map[string]func(tree *Tree, image []byte){
		"cycle": func(tree *Tree, image []byte) {
			redirect(image, tree.root, "d", tree.root)
		},
		"two parents": func(tree *Tree, image []byte) {
			redirect(image, tree.Lookup("d"), "e", tree.Lookup("d"))
		},
		"wrong parent": func(tree *Tree, image []byte) { redirect(image, tree.Lookup("d/e"), "..", tree.root) },
		"wrong self":   func(tree *Tree, image []byte) { redirect(image, tree.Lookup("d/e"), ".", tree.Lookup("d")) },
		"link count": func(tree *Tree, image []byte) {
			redirect(image, tree.root, "g", tree.Lookup("s"))
			settype(image, tree.root, "g", 7)
		},
		"links of file":   func(tree *Tree, image []byte) { image[tree.Lookup("f").place.at+44]++ },
		"links of dir":    func(tree *Tree, image []byte) { image[tree.Lookup("d").place.at+44]++ },
		"no links":        func(tree *Tree, image []byte) { image[tree.Lookup("s").place.at+44] = 0 },
		"upper format":    func(tree *Tree, image []byte) { image[tree.Lookup("f").place.at+1] = 2 },
		"compact":         func(tree *Tree, image []byte) { image[tree.Lookup("s").place.at] &^= 1 },
		"48 bits":         func(tree *Tree, image []byte) { image[tree.Lookup("s").place.at+6] = 1 },
		"nanoseconds":     func(tree *Tree, image []byte) { image[tree.Lookup("s").place.at+43] = 0xff },
		"NUL in symlink":  func(tree *Tree, image []byte) { image[tree.Lookup("s").place.at+extendedInodeSize+2] = 0 },
		"root is a file":  func(tree *Tree, image []byte) { image[tree.root.place.at+5] = 0x81 },
		"file type":       func(tree *Tree, image []byte) { settype(image, tree.root, "f", 2) },
		"order":           func(tree *Tree, image []byte) { image[entry(image, tree.root, "f").name] = 'c' },
		"name with slash": func(tree *Tree, image []byte) { image[entry(image, tree.root, "s").name] = '/' },
		"chunk behind the blob": func(tree *Tree, image []byte) {
			image[tree.Lookup("f").place.at+extendedInodeSize+4] = 1
		},
		"chunk of the bootstrap": func(tree *Tree, image []byte) { image[tree.Lookup("f").place.at+extendedInodeSize+2] = 0 },
		"chunk format":           func(tree *Tree, image []byte) { image[tree.Lookup("f").place.at+16] |= 0x40 },
	} {
		t.Run(name, func(t *testing.T) {
			tree, err := ReadTar(t.Context(), bytes.NewReader(small), Options{})
			if err != nil {
				t.Fatal(err)
			}
			image, err := tree.Encode()
			if err != nil {
				t.Fatal(err)
			}
			change(tree, image)
			if err := Check(mend(image), tree.BlobSize); !errors.Is(err, ErrInvalid) {
				t.Errorf("got %v", err)
			}
		})
	}
}

// where is the place of a directory entry and of its name.
type where struct{ entry, name int }

// entry finds a name in a directory that lies beside its inode.
func entry(image []byte, dir *Inode, name string) where {
	at := int(dir.place.at) + extendedInodeSize + len(dir.place.xattrs)
	for i, d := range dir.dirents(dir) {
		if d.name == name {
			e := at + i*direntSize
			return where{e, at + int(binary.LittleEndian.Uint16(image[e+direntNameOff:]))}
		}
	}
	panic(name)
}

func redirect(image []byte, dir *Inode, name string, to *Inode) {
	binary.LittleEndian.PutUint64(image[entry(image, dir, name).entry:], to.nid())
}

func settype(image []byte, dir *Inode, name string, to byte) {
	image[entry(image, dir, name).entry+10] = to
}
