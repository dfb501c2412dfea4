package predict

import (
	"debug/elf"
	"path"
	"strings"
)

// Code is taken whole up to these sizes, and of larger files what the loader
// touches. The kernel maps around each fault, so what runs at all is soon read
// all over: the program, the libraries it always has, the modules it loads. The
// libraries of a module are there for a few functions.
const (
	wholeProgram = 16 << 20
	wholeLibrary = 4 << 20
	wholeModule  = 8 << 20
	wholeNeeded  = 1 << 20
)

// systemDirs is where the loader looks when nothing says otherwise. The
// directories of /etc/ld.so.conf.d on Debian and others are among them.
var systemDirs = []string{
	"/lib/x86_64-linux-gnu", "/usr/lib/x86_64-linux-gnu", "/lib/aarch64-linux-gnu", "/usr/lib/aarch64-linux-gnu",
	"/lib64", "/usr/lib64", "/lib", "/usr/lib", "/usr/local/lib",
}

// program takes an executable, its loader and its libraries.
func (p *predictor) program(name string) { p.elf(name, wholeUpTo{wholeProgram, wholeLibrary}, 0) }

// module takes a shared object that is loaded into a running program.
func (p *predictor) module(name string) { p.elf(name, wholeUpTo{wholeModule, wholeNeeded}, 0) }

// readAround is what the kernel reads on both sides of a page of a mapped file:
// half its readahead (do_sync_mmap_readahead in mm/filemap.c, VM_READAHEAD_PAGES).
const readAround = 64 << 10

// wholeUpTo is the size up to which an object, and each that it needs, is taken
// whole.
type wholeUpTo struct{ object, needed int64 }

// elf takes an object and those it needs.
func (p *predictor) elf(name string, whole wholeUpTo, depth int) {
	real, f, ok := p.tree.regular(name)
	if !ok || depth > 40 || !p.take(real) {
		return
	}
	x, err := elf.NewFile(p.open(f))
	if err != nil {
		return
	}
	if f.Size <= whole.object || f.Size <= wholeModule && readAllOver(real) {
		p.add(f, 0, f.Size)
	} else {
		p.loaderParts(f, x)
	}
	for _, seg := range x.Progs {
		if seg.Type == elf.PT_INTERP && seg.Filesz > 0 && seg.Filesz < 4096 {
			b := make([]byte, seg.Filesz)
			if _, err := seg.ReadAt(b, 0); err == nil {
				p.elf(strings.TrimRight(string(b), "\x00"), whole.forNeeded(), depth+1)
			}
			p.whole("/etc/ld.so.cache")
		}
	}
	dirs := p.searchPath(real, x)
	needed, _ := x.ImportedLibraries()
	for _, lib := range needed {
		if target := p.findLibrary(lib, dirs); target != "" {
			p.elf(target, whole.forNeeded(), depth+1)
		}
	}
}

func (w wholeUpTo) forNeeded() wholeUpTo { return wholeUpTo{w.needed, w.needed} }

// readAllOver reports whether a library goes over nearly all of itself when it is
// initialized. OpenSSL's registers every algorithm and error text it has.
func readAllOver(name string) bool { return strings.HasPrefix(path.Base(name), "libcrypto.so") }

// loaderParts are what is touched of a large object when it is loaded: all before
// its code, its constructors (the compiler's own are the first of .text), and its
// writable segments, where relocations are applied.
func (p *predictor) loaderParts(f File, x *elf.File) {
	code := f.Size
	for _, seg := range x.Progs {
		if seg.Type == elf.PT_LOAD && seg.Flags&elf.PF_X != 0 {
			code = min(code, int64(seg.Off))
		}
	}
	const most = 4 << 20
	p.add(f, 0, min(max(code, 4096), most))
	if text := x.Section(".text"); text != nil {
		p.mapped(f, int64(text.Offset), 1)
	}
	for _, seg := range x.Progs {
		if seg.Type == elf.PT_LOAD && seg.Flags&elf.PF_W != 0 {
			p.mapped(f, int64(seg.Off), min(int64(seg.Filesz), most))
		}
	}
}

// mapped takes a part of a file that is touched through a mapping, and what is read
// around it.
func (p *predictor) mapped(f File, off, n int64) {
	if off < 0 || off >= f.Size {
		return
	}
	from := max(0, off-readAround)
	p.add(f, from, off+n+readAround-from)
}

func (p *predictor) searchPath(real string, x *elf.File) []string {
	var dirs []string
	for _, tag := range []elf.DynTag{elf.DT_RPATH, elf.DT_RUNPATH} {
		values, _ := x.DynString(tag)
		for _, v := range values {
			for dir := range strings.SplitSeq(v, ":") {
				dir = strings.ReplaceAll(strings.ReplaceAll(dir, "${ORIGIN}", "$ORIGIN"), "$ORIGIN", "/"+path.Dir(real))
				dirs = append(dirs, dir)
			}
		}
	}
	if v := p.env["LD_LIBRARY_PATH"]; v != "" {
		dirs = append(dirs, strings.Split(v, ":")...)
	}
	return append(dirs, systemDirs...)
}

func (p *predictor) findLibrary(name string, dirs []string) string {
	if strings.Contains(name, "/") {
		return name
	}
	for _, dir := range dirs {
		if _, _, ok := p.tree.regular(path.Join(dir, name)); ok {
			return path.Join(dir, name)
		}
	}
	return ""
}
