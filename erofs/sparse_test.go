package erofs

import (
	"archive/tar"
	"bytes"
	"errors"
	"maps"
	"strconv"
	"strings"
	"testing"
)

// sparse is a file in one of the sparse formats; what they say is up to a test.
type sparse struct {
	name    string
	records []string
	stored  string // bytes in the tar
}

func (s sparse) tar() []byte {
	var w rawTar
	if s.records != nil {
		w.pax(s.records...)
	}
	w.entry(tar.TypeReg, "f", int64(len(s.stored)), s.stored)
	w.entry(tar.TypeReg, "after", 5, "plain")
	return w.end()
}

func block(s string) string { return s + strings.Repeat("\x00", tarBlock-len(s)) }

var sparseFiles = []sparse{
	{name: "size alone", records: []string{"GNU.sparse.size", "9"}, stored: "not zeros"},
	{name: "realsize alone", records: []string{"GNU.sparse.realsize", "9"}, stored: "not zeros"},
	{name: "map of an unknown version", records: []string{"GNU.sparse.major", "2", "GNU.sparse.minor", "0", "GNU.sparse.map", "5000,9", "GNU.sparse.size", "6000"}, stored: "not zeros"},
	{name: "map beside major alone", records: []string{"GNU.sparse.major", "0", "GNU.sparse.map", "5000,9", "GNU.sparse.size", "6000"}, stored: "not zeros"},
	{name: "0.1", records: []string{"GNU.sparse.map", "5000,9", "GNU.sparse.numblocks", "1", "GNU.sparse.size", "6000"}, stored: "not zeros"},
	{name: "0.1 with its version", records: []string{"GNU.sparse.major", "0", "GNU.sparse.minor", "1", "GNU.sparse.map", "1,9,5000,2", "GNU.sparse.numblocks", "2", "GNU.sparse.realsize", "6000"}, stored: "not zeros!!"},
	{name: "0.1 without data", records: []string{"GNU.sparse.major", "0", "GNU.sparse.minor", "0", "GNU.sparse.numblocks", "0", "GNU.sparse.size", "6000"}},
	{name: "0.0", records: []string{"GNU.sparse.size", "6000", "GNU.sparse.numblocks", "2", "GNU.sparse.offset", "0", "GNU.sparse.numbytes", "4", "GNU.sparse.offset", "5000", "GNU.sparse.numbytes", "5"}, stored: "not zeros"},
	{name: "1.0", records: []string{"GNU.sparse.major", "1", "GNU.sparse.minor", "0", "GNU.sparse.realsize", "6000"}, stored: block("2\n0\n4\n5000\n5\n") + "not zeros"},
	{name: "1.0 with a name", records: []string{"GNU.sparse.name", "elsewhere", "GNU.sparse.major", "1", "GNU.sparse.minor", "0", "GNU.sparse.realsize", "6000"}, stored: block("1\n5000\n9\n") + "not zeros"},
	{name: "1.0 with the size in PAX", records: []string{"size", "521", "GNU.sparse.major", "1", "GNU.sparse.minor", "0", "GNU.sparse.realsize", "6000"}, stored: block("1\n5000\n9\n") + "not zeros"},
	{name: "1.0 without data", records: []string{"GNU.sparse.major", "1", "GNU.sparse.minor", "0", "GNU.sparse.realsize", "6000"}, stored: block("0\n")},
	{name: "more in the map than in the tar", records: []string{"GNU.sparse.map", "5000,10", "GNU.sparse.numblocks", "1", "GNU.sparse.size", "6000"}, stored: "not zeros"},
	{name: "less in the map than in the tar", records: []string{"GNU.sparse.map", "5000,8", "GNU.sparse.numblocks", "1", "GNU.sparse.size", "6000"}, stored: "not zeros"},
	{name: "map that overlaps", records: []string{"GNU.sparse.map", "0,4,3,5", "GNU.sparse.numblocks", "2", "GNU.sparse.size", "6000"}, stored: "not zeros"},
	{name: "1.0 cut off", records: []string{"GNU.sparse.major", "1", "GNU.sparse.minor", "0", "GNU.sparse.realsize", "6000"}, stored: block("3\n5000\n9\n")},
}

// What is sparse and what of it is zeros must be as in archive/tar, which
// containerd reads layers with.
func TestSparseAsArchiveTar(t *testing.T) {
	for _, f := range sparseFiles {
		t.Run(f.name, func(t *testing.T) {
			layer := f.tar()
			want, wantErr := archiveTar(layer)
			tree, err := ReadTar(t.Context(), bytes.NewReader(layer), Options{})
			if (err != nil) != (wantErr != nil) {
				t.Fatalf("got %v, archive/tar says %v", err, wantErr)
			}
			if err != nil {
				return
			}
			got := map[string]string{}
			for name, n := range tree.root.children {
				got[name] = string(assemble(n, layer))
			}
			if !maps.Equal(got, want) {
				t.Errorf("got %.60q, want %.60q", got, want)
			}
		})
	}
}

// Sizes that containerd could not write either, or that a small tar makes large.
func TestSparseSizes(t *testing.T) {
	old := rawTar{gnu: true} // containerd refuses the type
	old.entry(tar.TypeGNUSparse, "f", 0, "")
	for name, tc := range map[string]struct {
		layer []byte
		want  error
	}{
		"2^63-1":        {sparse{records: hugeSparse("9223372036854775807")}.tar(), ErrInvalid},
		"2^60":          {sparse{records: hugeSparse("1152921504606846976")}.tar(), ErrInvalid},
		"8 TiB and one": {sparse{records: hugeSparse("8796093022209")}.tar(), ErrInvalid},
		"negative":      {sparse{records: hugeSparse("-1")}.tar(), tar.ErrHeader},
		"old GNU":       {old.end(), ErrInvalid},
		"data at both ends of 8 TiB": {sparse{records: []string{"GNU.sparse.map", "0,2,8796093022200,2", "GNU.sparse.numblocks", "2",
			"GNU.sparse.size", "8796093022208"}, stored: "data"}.tar(), nil},
		"a little data all over 8 TiB": {manyRuns(1000, 8<<40/1000), ErrUnsupported},
	} {
		t.Run(name, func(t *testing.T) {
			tree, err := ReadTar(t.Context(), bytes.NewReader(tc.layer), Options{})
			if !errors.Is(err, tc.want) {
				t.Fatalf("got %v, want %v", err, tc.want)
			}
			if err == nil {
				image, err := tree.Encode()
				if err != nil {
					t.Fatal(err)
				}
				if err := Check(image, tree.BlobSize); err != nil {
					t.Error(err)
				}
			}
		})
	}
}

func hugeSparse(size string) []string {
	return []string{"GNU.sparse.major", "0", "GNU.sparse.minor", "1", "GNU.sparse.numblocks", "0", "GNU.sparse.size", size}
}

// manyRuns is a sparse file of n bytes of data, a step apart.
func manyRuns(n int, step int64) []byte {
	var runs []string
	for i := range n {
		runs = append(runs, strconv.FormatInt(int64(i)*step, 10), "1")
	}
	return sparse{records: []string{
		"GNU.sparse.map", strings.Join(runs, ","), "GNU.sparse.numblocks", strconv.FormatInt(int64(n), 10),
		"GNU.sparse.size", strconv.FormatInt(int64(n)*step, 10),
	}, stored: strings.Repeat("x", n)}.tar()
}

// A whiteout may have content, which is not to be taken for the headers of the
// entry behind it.
func TestSparseBehindSkippedContent(t *testing.T) {
	var fake rawTar
	fake.entry(tar.TypeReg, "fake", 521, block("1\n0\n9\n")+"zeros, no")
	var w rawTar
	w.entry(tar.TypeReg, ".wh.x", int64(fake.Len()), fake.String())
	w.pax("GNU.sparse.major", "1", "GNU.sparse.minor", "0", "GNU.sparse.realsize", "6000")
	w.entry(tar.TypeReg, "f", 521, block("1\n5000\n9\n")+"not zeros")
	layer := w.end()
	want, err := archiveTar(layer)
	if err != nil {
		t.Fatal(err)
	}
	tree, err := ReadTar(t.Context(), bytes.NewReader(layer), Options{})
	if err != nil {
		t.Fatal(err)
	}
	if got := string(assemble(tree.Lookup("f"), layer)); got != want["f"] {
		t.Errorf("got %.60q", got)
	}
}
