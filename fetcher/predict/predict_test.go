package predict

import (
	"archive/tar"
	"bytes"
	"debug/elf"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/lacuna-snapshotter/lacuna/erofs"
	"github.com/lacuna-snapshotter/lacuna/internal/hostcheck"
)

func TestImportStatements(t *testing.T) {
	source := `#!/usr/bin/python3
"""Docstring with
import nothing
"""
import os, sys as system
import a.b.c
from . import core
from ..pkg.mod import (x,  # a comment, with import z
    y as why,
)
from __future__ import annotations
text = 'import string'; import after
try:
    import fast
except ImportError:
    import slow
if TYPE_CHECKING:
    import typeonly
def f():
    import lazy
class C:
    import inclass
from star import *
from long import one, \
    two
`
	var got []string
	for _, s := range importStatements([]byte(source)) {
		got = append(got, strings.Repeat(".", s.level)+s.module+":"+strings.Join(s.names, ","))
	}
	want := []string{
		"os:", "sys:", "a.b.c:", ".:core", "..pkg.mod:x,y", "__future__:annotations", "after:",
		"fast:", "slow:", "inclass:", "star:", "long:one,two",
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %q\nwant %q", got, want)
	}
}

func FuzzImports(f *testing.F) {
	f.Add([]byte("from . import (a,\n b)\n'''x\nimport y'''\nif 1:\n  import z\\\n"))
	f.Fuzz(func(t *testing.T, source []byte) {
		for _, s := range importStatements(source) {
			if s.level < 0 || len(s.names) > len(source) {
				t.Fatalf("%+v", s)
			}
		}
	})
}

// fakeImage is a tree of one layer with its contents.
type fakeImage struct {
	tree *Tree
	data map[uint64][]byte // by nid
}

func newImage(t *testing.T, files map[string]string, links map[string]string) *fakeImage {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for name, content := range files {
		if err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o755, Size: int64(len(content))}); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, content); err != nil {
			t.Fatal(err)
		}
	}
	for name, target := range links {
		if err := w.WriteHeader(&tar.Header{Name: name, Typeflag: tar.TypeSymlink, Linkname: target}); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	e, err := erofs.ReadTar(t.Context(), &b, erofs.Options{})
	if err != nil {
		t.Fatal(err)
	}
	bootstrap, err := e.Encode()
	if err != nil {
		t.Fatal(err)
	}
	i := &fakeImage{data: map[uint64][]byte{}}
	if i.tree, err = NewTree([][]byte{bootstrap}); err != nil {
		t.Fatal(err)
	}
	for name, content := range files {
		_, f, ok := i.tree.Resolve(name)
		if !ok {
			t.Fatalf("%s is not in the tree", name)
		}
		i.data[f.Nid] = []byte(content)
	}
	return i
}

func (i *fakeImage) start(c Command) (names []string) {
	byNid := map[uint64]string{}
	for name, f := range i.tree.files {
		byNid[f.Nid] = name
	}
	open := func(f File) io.ReaderAt { return bytes.NewReader(i.data[f.Nid]) }
	for _, r := range Start(i.tree, open, c, DefaultLimit) {
		names = append(names, byNid[r.File.Nid])
	}
	return names
}

func TestPython(t *testing.T) {
	python, err := os.ReadFile(hostcheck.Tool(t, "true")) // any ELF will do
	if err != nil {
		t.Fatal(err)
	}
	lib := "usr/lib/python3.11/"
	img := newImage(t, map[string]string{
		"usr/bin/python3.11":     string(python),
		lib + "os.py":            "import stat",
		lib + "stat.py":          "x = 1",
		lib + "json/__init__.py": "from .decoder import JSONDecoder\nfrom . import scanner",
		lib + "json/__pycache__/__init__.cpython-311.pyc": "compiled",
		lib + "json/decoder.py":                           "import re",
		lib + "json/scanner.py":                           "import json",
		lib + "re.py":                                     "def f():\n    import unused",
		lib + "unused.py":                                 "x",
		"usr/lib/python3/dist-packages/dep.py":            "import stat",
		"app/main.py":                                     "import json, dep, local, missing",
		"app/local.py":                                    "x",
		"etc/passwd":                                      "root",
	}, map[string]string{"usr/bin/python3": "python3.11", "bin": "usr/bin"})
	names := img.start(Command{Args: []string{"python3", "main.py"}, Dir: "/app", Env: []string{"PATH=/bin"}})
	for _, want := range []string{
		"etc/passwd", "usr/bin/python3.11", lib + "os.py", lib + "stat.py", "app/main.py",
		lib + "json/__pycache__/__init__.cpython-311.pyc", lib + "json/decoder.py", lib + "re.py", lib + "json/scanner.py",
		"usr/lib/python3/dist-packages/dep.py", "app/local.py",
	} {
		if !slices.Contains(names, want) {
			t.Errorf("%s is not predicted", want)
		}
	}
	for _, not := range []string{lib + "unused.py", lib + "json/__init__.py"} {
		if slices.Contains(names, not) {
			t.Errorf("%s is predicted", not)
		}
	}
	if slices.Index(names, "app/main.py") > slices.Index(names, lib+"re.py") {
		t.Errorf("order: %q", names)
	}
	again := img.start(Command{Args: []string{"sh", "-c", "exec python3 main.py"}, Dir: "/app", Env: []string{"PATH=/bin"}})
	if slices.Contains(again, "app/main.py") {
		t.Error("a shell that is not there ran a program")
	}
}

// TestELF predicts a real program with its real libraries.
func TestELF(t *testing.T) {
	files := map[string]string{}
	add := func(path string) {
		b, err := os.ReadFile(path)
		if err != nil {
			hostcheck.Missing(t, path)
		}
		files[strings.TrimPrefix(path, "/")] = string(b)
	}
	program := hostcheck.Tool(t, "bash")
	program, err := filepath.EvalSymlinks(program)
	if err != nil {
		t.Fatal(err)
	}
	add(program)
	for _, lib := range []string{"libc.so.6", "libtinfo.so.6", "libm.so.6"} {
		add("/lib/x86_64-linux-gnu/" + lib)
	}
	add("/lib64/ld-linux-x86-64.so.2")
	names := newImage(t, files, nil).start(Command{Args: []string{program}})
	for _, want := range []string{"lib/x86_64-linux-gnu/libc.so.6", "lib/x86_64-linux-gnu/libtinfo.so.6", "lib64/ld-linux-x86-64.so.2"} {
		if !slices.Contains(names, want) {
			t.Errorf("%s is not predicted: %q", want, names)
		}
	}
	if slices.Contains(names, "lib/x86_64-linux-gnu/libm.so.6") {
		t.Error("a library that bash does not need is predicted")
	}
}

// TestLargeObject predicts parts of an object that is too large to be taken whole,
// and all of one that is known to be read all over.
func TestLargeObject(t *testing.T) {
	name := hostcheck.Tool(t, "bash")
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	x, err := elf.NewFile(bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	img := newImage(t, map[string]string{"lib/libcrypto.so.3": string(b), "lib/liblarge.so": string(b)}, nil)
	predicted := func(lib string) (list []Range) {
		p := &predictor{tree: img.tree, limit: DefaultLimit, seen: map[string]bool{}, open: func(f File) io.ReaderAt { return bytes.NewReader(img.data[f.Nid]) }}
		p.elf(lib, wholeUpTo{}, 0)
		return p.ranges
	}
	if list := predicted("lib/libcrypto.so.3"); len(list) != 1 || list[0].Len != int64(len(b)) {
		t.Errorf("%+v", list)
	}
	list := predicted("lib/liblarge.so")
	total := int64(0)
	for _, r := range list {
		total += r.Len
	}
	if total >= int64(len(b))/2 {
		t.Errorf("%d of %d bytes: %+v", total, len(b), list)
	}
	// The kernel reads around the first instruction and the first relocated page.
	for _, seg := range x.Progs {
		if seg.Type == elf.PT_LOAD && seg.Flags&elf.PF_W != 0 {
			within(t, list, int64(seg.Off)-readAround, min(int64(seg.Off+seg.Filesz)+readAround, int64(len(b))))
		}
	}
	text := int64(x.Section(".text").Offset)
	within(t, list, max(0, text-readAround), text+readAround)
}

func within(t *testing.T, list []Range, from, to int64) {
	t.Helper()
	if !slices.ContainsFunc(list, func(r Range) bool { return r.Off <= from && to <= r.Off+r.Len }) {
		t.Errorf("[%d,%d) is not within %+v", from, to, list)
	}
}

func TestHostileImages(t *testing.T) {
	loop := newImage(t, map[string]string{"bin/a": "#!/bin/b\n", "bin/b": "#!/bin/a\n"}, map[string]string{"x": "y", "y": "x"})
	if names := loop.start(Command{Args: []string{"a"}}); len(names) > 3 {
		t.Errorf("%q", names)
	}
	if _, _, ok := loop.tree.Resolve("/x/y"); ok {
		t.Error("a symlink loop leads somewhere")
	}
	for _, args := range [][]string{nil, {""}, {"/"}, {"none"}} {
		_ = loop.start(Command{Args: args})
	}
}
