package erofs

import (
	"archive/tar"
	"bytes"
	"maps"
	"math/rand/v2"
	"testing"
)

// FuzzReadTar: what can be read can be encoded, Check takes it, and files have
// the bytes that archive/tar reads.
func FuzzReadTar(f *testing.F) {
	f.Add(makeTar(f, file{hdr("a/b"), "x"}, file{hdr("c", typ(tar.TypeSymlink, "a")), ""}, file{hdr("c/d", attr("user.x", "y")), "z"}))
	f.Add(makeTar(f, directorySizes()[:100]...))
	for _, s := range sparseFiles {
		f.Add(s.tar())
	}
	for seed := range uint64(20) {
		f.Add(randomTar(f, rand.New(rand.NewPCG(seed, 0))))
	}
	f.Fuzz(func(t *testing.T, layer []byte) {
		tree, err := ReadTar(t.Context(), bytes.NewReader(layer), Options{})
		if err != nil {
			return
		}
		image, err := tree.Encode()
		if err != nil {
			t.Fatal(err)
		}
		if err := Check(image, tree.BlobSize); err != nil {
			t.Fatal(err)
		}
		if tree.count > 1 || tree.BlobSize > 1<<20 {
			return // several names: which contents count is TestRandomTars' question
		}
		want, err := archiveTar(layer)
		if err != nil {
			t.Fatal(err)
		}
		for name, n := range tree.root.children {
			if n.Mode&ModeType != ModeRegular || n.Size > 1<<20 {
				continue
			}
			got := string(assemble(n, layer))
			found := false
			for content := range maps.Values(want) {
				found = found || content == got
			}
			if !found {
				t.Errorf("%q has %.100q, archive/tar reads %.100q", name, got, want)
			}
		}
	})
}

// FuzzCheck feeds the reader damaged images. The superblock's checksum is
// mended, or it would shield everything behind it.
func FuzzCheck(f *testing.F) {
	for _, layer := range [][]byte{exampleLayer(f), makeTar(f, directorySizes()[:60]...), makeTar(f)} {
		tree, err := ReadTar(f.Context(), bytes.NewReader(layer), Options{})
		if err != nil {
			f.Fatal(err)
		}
		image, err := tree.Encode()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(image, tree.BlobSize)
	}
	f.Fuzz(func(t *testing.T, data []byte, blobSize int64) {
		if len(data) < BlockSize {
			return
		}
		if Check(mend(data), blobSize) != nil {
			return
		}
		m, err := Open(data)
		if err != nil {
			t.Fatal(err)
		}
		inodes := map[uint64]bool{}
		err = m.Walk(func(_ string, f *FileInfo) error {
			inodes[f.Nid] = true
			return nil
		})
		if err != nil || uint64(len(inodes)) != m.Inodes {
			t.Fatalf("%d inodes: %v", len(inodes), err)
		}
	})
}
