package erofs

import (
	"archive/tar"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"runtime"
	"strconv"
	"strings"
	"testing"
)

// maxCost is what a tar or a bootstrap of maxSmall bytes may allocate, in all:
// no more of it can be alive at once.
const (
	maxSmall = 1 << 20
	maxCost  = 64 << 20
)

// cost runs f and returns the bytes that it allocated.
func cost(f func()) uint64 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	f()
	runtime.ReadMemStats(&after)
	return after.TotalAlloc - before.TotalAlloc
}

// fill repeats entries up to a size.
func fill(add func(w *rawTar, i int)) []byte {
	var w rawTar
	for i := 0; w.Len() < maxSmall-(16<<10); i++ {
		add(&w, i)
	}
	return w.end()
}

func TestCostOfTars(t *testing.T) {
	deep := func(name string) string { return strings.Repeat(name+"/", maxPath/(len(name)+1)) }
	oneXattr := func(i int) string { return xattrRecord + "user." + strconv.Itoa(i) }
	for name, layer := range map[string][]byte{
		"empty files": fill(func(w *rawTar, i int) { w.entry(tar.TypeReg, strconv.Itoa(i), 0, "") }),
		"small files": fill(func(w *rawTar, i int) { w.entry(tar.TypeReg, strconv.Itoa(i), 1, "x") }),
		"directories": fill(func(w *rawTar, i int) { w.entry(tar.TypeDir, strconv.Itoa(i), 0, "") }),
		"implied directories": fill(func(w *rawTar, i int) {
			w.pax("path", strconv.Itoa(i)+"/"+deep("d"))
			w.entry(tar.TypeReg, "", 0, "")
		}),
		"implied directories in short names": fill(func(w *rawTar, i int) {
			w.entry(tar.TypeReg, strconv.Itoa(i)+"/"+strings.Repeat("d/", 45)+"f", 0, "")
		}),
		"the same deep directory": fill(func(w *rawTar, i int) {
			w.pax("path", deep("d")+strconv.Itoa(i))
			w.entry(tar.TypeReg, "", 0, "")
		}),
		"symlinks to symlinks": fill(func(w *rawTar, i int) {
			w.pax("linkpath", strconv.Itoa(max(0, i-1))+"/"+strings.Repeat("./", 2000))
			w.entry(tar.TypeSymlink, strconv.Itoa(i), 0, "")
			w.entry(tar.TypeReg, strconv.Itoa(i)+"/f", 0, "")
		}),
		"long symlinks": fill(func(w *rawTar, i int) {
			w.pax("linkpath", strings.Repeat("s", maxPath))
			w.entry(tar.TypeSymlink, strconv.Itoa(i), 0, "")
		}),
		"hard links through symlinks": fill(func(w *rawTar, i int) {
			if i == 0 {
				w.entry(tar.TypeReg, "f", 0, "")
				w.pax("linkpath", deep("."))
				w.entry(tar.TypeSymlink, "s", 0, "")
			}
			w.pax("linkpath", strings.Repeat("s/", 200)+"f")
			w.entry(tar.TypeLink, strconv.Itoa(i), 0, "")
		}),
		"names of one file in a deep directory": fill(func(w *rawTar, i int) {
			if i == 0 {
				w.entry(tar.TypeReg, "f", 0, "")
				w.pax("path", deep("d"))
				w.entry(tar.TypeDir, "", 0, "")
				w.pax("linkpath", deep("d"))
				w.entry(tar.TypeSymlink, "s", 0, "")
			}
			w.pax("path", "s/"+strconv.Itoa(i), "linkpath", "f")
			w.entry(tar.TypeLink, "", 0, "")
		}),
		"attributes": fill(func(w *rawTar, i int) {
			var records []string
			for k := range 1000 {
				records = append(records, oneXattr(k), strconv.Itoa(i))
			}
			w.pax(records...)
			w.entry(tar.TypeReg, strconv.Itoa(i), 0, "")
		}),
		"shared attributes": fill(func(w *rawTar, i int) {
			var records []string
			for k := range 250 {
				records = append(records, oneXattr(k), "")
			}
			w.pax(records...)
			w.entry(tar.TypeReg, strconv.Itoa(i), 0, "")
		}),
		"a directory with ever more attributes": fill(func(w *rawTar, i int) {
			w.pax(oneXattr(i), "")
			w.entry(tar.TypeDir, "d", 0, "")
		}),
		"large attributes": fill(func(w *rawTar, i int) {
			w.pax(oneXattr(i), strings.Repeat("v", 50<<10))
			w.entry(tar.TypeReg, strconv.Itoa(i), 0, "")
		}),
		"large records": fill(func(w *rawTar, _ int) {
			w.pax("comment", strings.Repeat("v", 100<<10))
			w.entry(tar.TypeReg, "f", 0, "")
		}),
		"records of records": fill(func(w *rawTar, _ int) { w.pax("comment", strings.Repeat("v", 100<<10)) }),
		"global records": fill(func(w *rawTar, i int) {
			s := paxRecord("comment", strings.Repeat("v", i))
			w.entry(tar.TypeXGlobalHeader, "g", int64(len(s)), s)
		}),
		"long names": fill(func(w *rawTar, _ int) {
			w.entry(tar.TypeGNULongName, "L", 100<<10, strings.Repeat("n", 100<<10))
		}),
		"huge holes": fill(func(w *rawTar, i int) {
			w.pax(hugeSparse(strconv.Itoa(8 << 40))...)
			w.entry(tar.TypeReg, strconv.Itoa(i), 0, "")
		}),
		"holes in blocks": fill(func(w *rawTar, i int) {
			w.pax(hugeSparse(strconv.Itoa(maxChunks * BlockSize))...)
			w.entry(tar.TypeReg, strconv.Itoa(i), 0, "")
		}),
		"one sparse file of many runs":  manyRuns(80000, 2),
		"one sparse file of far runs":   manyRuns(50000, 1<<20),
		"one sparse file of block runs": manyRuns(50000, BlockSize),
		"huge file": fill(func(w *rawTar, i int) {
			w.pax("size", strconv.Itoa(8<<40))
			w.entry(tar.TypeReg, strconv.Itoa(i), 0, "")
		}),
	} {
		t.Run(name, func(t *testing.T) {
			if len(layer) > 2*maxSmall {
				t.Fatalf("a tar of %d bytes", len(layer))
			}
			var image []byte
			var err error
			var result string
			got := cost(func() {
				var tree *Tree
				if tree, err = ReadTar(t.Context(), bytes.NewReader(layer), Options{}); err != nil {
					return
				}
				if image, err = tree.Encode(); err != nil {
					return
				}
				result = fmt.Sprintf("bootstrap of %d, blob of %d", len(image), tree.BlobSize)
				err = Check(image, tree.BlobSize)
			})
			if got > maxCost {
				t.Errorf("allocated %d bytes for a tar of %d", got, len(layer))
			}
			t.Logf("tar of %d: allocated %d MiB: %s %.300v", len(layer), got>>20, result, err)
			if err != nil && !errors.Is(err, ErrInvalid) && !errors.Is(err, ErrUnsupported) &&
				!errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, tar.ErrHeader) && !errors.Is(err, tar.ErrFieldTooLong) {
				t.Error(err)
			}
		})
	}
}

// Bootstraps whose parts overlap as much as they can.
func TestCostOfBootstraps(t *testing.T) {
	var first uint32 // block of what is filled up
	for name, tc := range map[string]struct {
		flag   byte
		damage func(image []byte, at int)
	}{
		"inodes with all attributes": {tar.TypeFifo, func(b []byte, at int) {
			rawInode{mode: ModeFifo, nlink: 1}.encode(b[at:])
			binary.LittleEndian.PutUint16(b[at+inodeXattrCount:], 0xffff)
		}},
		"inodes with all chunks": {tar.TypeReg, func(b []byte, at int) {
			rawInode{mode: ModeRegular, layout: layoutChunk, size: 1 << 28, union: chunkIndexes, nlink: 1}.encode(b[at:])
		}},
		"directories in one place": {tar.TypeDir, func(b []byte, at int) {
			rawInode{mode: ModeDir, size: BlockSize, union: first, nlink: 2}.encode(b[at:])
		}},
		"long symlinks": {tar.TypeSymlink, func(b []byte, at int) {
			rawInode{mode: ModeSymlink, size: maxPath, union: first, nlink: 1}.encode(b[at:])
		}},
	} {
		t.Run(name, func(t *testing.T) {
			var w rawTar
			for i := range 4000 {
				if tc.flag == tar.TypeSymlink {
					w.pax("linkpath", "t")
				}
				w.entry(tc.flag, strconv.Itoa(i), 0, "")
			}
			tree, err := ReadTar(t.Context(), bytes.NewReader(w.end()), Options{})
			if err != nil {
				t.Fatal(err)
			}
			image, err := tree.Encode()
			if err != nil {
				t.Fatal(err)
			}
			first = uint32(len(image) / BlockSize)
			image = append(image, bytes.Repeat([]byte("t"), maxSmall-len(image))...)
			clear(image[(first+1)*BlockSize-1:]) // the block's end, since a longest symlink is shorter
			binary.LittleEndian.PutUint32(image[superOffset+sbBlocks:], uint32(len(image)/BlockSize))
			for _, n := range tree.root.children {
				tc.damage(image, int(n.place.at))
			}
			mend(image)
			got := cost(func() { err = Check(image, tree.BlobSize) })
			if !errors.Is(err, ErrInvalid) {
				t.Errorf("got %v", err)
			}
			t.Logf("allocated %d MiB: %.200v", got>>20, err)
			if got > maxCost {
				t.Errorf("allocated %d bytes", got)
			}
		})
	}
}
