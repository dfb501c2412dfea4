package ondemand

import (
	"bytes"
	"encoding/hex"
	"errors"
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write golden files")

// TestRecordsBelongToOneFile has other files in the blob's place, with its
// records beside them.
func TestRecordsBelongToOneFile(t *testing.T) {
	do := func(t *testing.T, err ...error) {
		t.Helper()
		if err := errors.Join(err...); err != nil {
			t.Fatal(err)
		}
	}
	for name, exchange := range map[string]func(t *testing.T, dir, path string) (at string){
		"removed": func(t *testing.T, dir, path string) string {
			do(t, os.Remove(path))
			return dir
		},
		"another of its size": func(t *testing.T, dir, path string) string {
			info, err := os.Stat(path)
			do(t, err, os.Remove(path), os.WriteFile(path, nil, 0o600), os.Truncate(path, info.Size()))
			return dir
		},
		"emptied": func(t *testing.T, dir, path string) string {
			do(t, os.Truncate(path, 0))
			return dir
		},
		"copied": func(t *testing.T, dir, _ string) string {
			to := filepath.Join(t.TempDir(), "copy")
			out, err := exec.Command("cp", "-a", dir, to).CombinedOutput()
			if err != nil {
				t.Fatalf("%v: %s", err, out)
			}
			return to
		},
		"restored": func(t *testing.T, dir, path string) string {
			out, err := exec.Command("cp", "-a", path, path+".backup").CombinedOutput()
			if err != nil {
				t.Fatalf("%v: %s", err, out)
			}
			do(t, os.Remove(path), os.Rename(path+".backup", path))
			return dir
		},
	} {
		for _, boot := range []string{bootA, bootB} {
			t.Run(name+" "+boot[:1], func(t *testing.T) {
				s := newSource(16*testSpan + 5)
				dir := t.TempDir()
				_, b := openBlob(t, Options{}, s, dir)
				do(t, b.Fill(t.Context(), 0, b.Size()), b.Sync(), b.Close())
				at := exchange(t, dir, b.Path())
				_, b = openBlob(t, Options{BootID: boot}, s, at)
				if b.Filled() != 0 {
					t.Errorf("%d bytes of another file count as filled", b.Filled())
				}
				do(t, b.Fill(t.Context(), 0, b.Size()))
				checkFile(t, b, s, 0, b.Size())
			})
		}
	}
	t.Run("moved", func(t *testing.T) { // is the same file
		s := newSource(16 * testSpan)
		dir := t.TempDir()
		_, b := openBlob(t, Options{}, s, dir)
		do(t, b.Fill(t.Context(), 0, b.Size()), b.Close())
		to := filepath.Join(t.TempDir(), "moved")
		do(t, os.Rename(dir, to))
		if _, b = openBlob(t, Options{}, s, to); !b.Complete() {
			t.Error("its record is not believed")
		}
	})
}

// TestOtherSpans: a record of another layout is replaced by one that the next
// daemon believes.
func TestOtherSpans(t *testing.T) {
	d, s := newMemDisk(), newSource(64*testSpan)
	_, b, err := openMem(d, bootA, s)
	if err := errors.Join(err, b.Fill(t.Context(), 0, b.Size()), b.Close()); err != nil {
		t.Fatal(err)
	}
	c := BlobConfig{Key: b.Key(), Path: "blob", Size: b.Size(), SpanSize: b.Size() / 2, Source: s}
	for i := range int64(2) {
		e, err := New(Options{BootID: bootA})
		if err != nil {
			t.Fatal(err)
		}
		e.disk = d
		b, err := e.Open(c)
		if err != nil || b.backing.Count() != i {
			t.Fatalf("daemon %d: %v", i, err)
		}
		if err := errors.Join(b.backing.Put(i, s.data[i*c.SpanSize:(i+1)*c.SpanSize]), b.Close()); err != nil {
			t.Fatal(err)
		}
	}
}

// TestForeignFile: somebody may have it mounted.
func TestForeignFile(t *testing.T) {
	s := newSource(16 * testSpan)
	path := filepath.Join(t.TempDir(), "blob")
	foreign := bytes.Repeat([]byte("x"), 3*testSpan)
	if err := os.WriteFile(path, foreign, 0o600); err != nil {
		t.Fatal(err)
	}
	e, err := New(Options{BootID: bootA})
	if err != nil {
		t.Fatal(err)
	}
	c := BlobConfig{Key: Key{"v", "c"}, Path: path, Size: int64(len(s.data)), SpanSize: testSpan, Source: s}
	_, err = e.Open(c)
	var f *ForeignFileError
	if !errors.As(err, &f) || f.Path != path || f.Size != 3*testSpan || f.Want != 16*testSpan {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, foreign) {
		t.Error("it was changed", err)
	}
	if err := os.Rename(path, path+".old"); err != nil {
		t.Fatal(err)
	}
	b, err := e.Open(c)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(b.Fill(t.Context(), 0, b.Size()), b.Close()); err != nil {
		t.Error(err)
	}
}

// TestFileSystemsWithoutIdentity: no record is believed there.
func TestFileSystemsWithoutIdentity(t *testing.T) {
	f, err := os.Open("/proc/self/stat") // procfs has neither births nor generations
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	one, err1 := fileIdentity(f)
	two, err2 := fileIdentity(f)
	if err := errors.Join(err1, err2); err != nil {
		t.Fatal(err)
	}
	if one.known != 0 || one == two {
		t.Errorf("%+v, %+v", one, two)
	}
}

// TestRecordFormat compares both records with golden files.
func TestRecordFormat(t *testing.T) {
	h := header{spans: 11, spanSize: 65536, boot: bootA, blob: identity{
		inode: 0x0102030405060708, birth: 1700000000, birthNsec: 123456789,
		generation: 0xdeadbeef, known: hasBirth | hasGeneration, device: 0xfe01,
	}}
	bitmap := []byte{0x05, 0x04}
	for name, b := range map[string][]byte{
		"running": append(h.encode(), bitmap...),
		"durable": encodeDurable(h.encode(), bitmap),
	} {
		golden := filepath.Join("testdata", name+".hex")
		got := hex.Dump(b)
		if *update {
			if err := errors.Join(os.MkdirAll("testdata", 0o755), os.WriteFile(golden, []byte(got), 0o644)); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(golden)
		if err != nil || string(want) != got {
			t.Errorf("%s: %v\n%s", name, err, got)
		}
		bits := h.runningBits(bytes.Clone(b))
		if name == "durable" {
			bits = h.durableBits(bytes.Clone(b))
		}
		if !bytes.Equal(bits, bitmap) {
			t.Errorf("%s: decoded %x", name, bits)
		}
		for at := range b { // every byte counts, but what the durable record has of its boot
			if at >= recordHeader {
				break
			}
			bad := bytes.Clone(b)
			bad[at] ^= 1
			if h.runningBits(bad) != nil || h.durableBits(bad) != nil {
				t.Errorf("%s: believed with byte %d changed", name, at)
			}
		}
	}
	if strings.Contains(string(h.encode()), "LACUNAR1") {
		t.Error("version")
	}
}

// FuzzRecord: no bytes on a disk end the daemon or name spans that there are not.
func FuzzRecord(f *testing.F) {
	h := header{spans: 11, spanSize: 65536, boot: bootA}
	f.Add(append(h.encode(), 5, 4))
	f.Add(encodeDurable(h.encode(), []byte{5, 4}))
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, bits := range [][]byte{h.runningBits(bytes.Clone(b)), h.durableBits(bytes.Clone(b))} {
			if bits != nil && (len(bits) != 2 || bits[1]>>3 != 0) {
				t.Errorf("%x", bits)
			}
		}
	})
}
