package predict

import (
	"bytes"
	"path"
	"slices"
	"strings"

	"github.com/lacuna-snapshotter/lacuna/erofs"
)

// interpreter is one Python in the image.
type interpreter struct {
	tag    string // of compiled modules, such as "cpython-311"
	stdlib string
	path   []string // sys.path
	loaded map[string]bool
}

// startModules are imported by the interpreter itself before the first line of a
// program (Python's site module and the codecs of standard streams).
var startModules = []string{"encodings", "encodings.aliases", "encodings.utf_8", "codecs", "io", "abc", "site", "os", "stat", "posixpath", "genericpath", "_collections_abc", "_sitebuiltins", "sitecustomize"}

// runPython follows what python with these arguments imports.
func (p *predictor) runPython(program string, args []string) {
	py := p.findPython(program)
	if py == nil {
		return
	}
	p.python = py
	// Its locale and time zone, at glibc's places.
	for _, name := range []string{"/usr/lib/locale/C.utf8/LC_CTYPE", "/usr/lib/x86_64-linux-gnu/gconv/gconv-modules.cache", "/etc/localtime"} {
		p.whole(name)
	}
	for _, m := range startModules {
		p.importModule(m, 0)
	}
	for _, dir := range py.path {
		for _, name := range p.tree.names(dir) {
			if strings.HasSuffix(name, ".pth") {
				p.whole(path.Join(dir, name))
			}
		}
	}
	for i := 0; i < len(args); i++ {
		switch a := args[i]; {
		case a == "-c" && i+1 < len(args):
			p.imports([]byte(args[i+1]), "", 0)
			return
		case a == "-m" && i+1 < len(args):
			py.path = append([]string{p.dir}, py.path...)
			p.importModule("runpy", 0)
			p.importModule(args[i+1], 0)
			p.importModule(args[i+1]+".__main__", 0)
			return
		case a == "-X" || a == "-W":
			i++
		case strings.HasPrefix(a, "-"):
		default:
			p.runScript(a)
			return
		}
	}
}

// runScript follows a program's source.
func (p *predictor) runScript(name string) {
	if !path.IsAbs(name) {
		name = path.Join(p.dir, name)
	}
	real, f, ok := p.tree.regular(name)
	if !ok {
		return
	}
	p.python.path = append([]string{"/" + path.Dir(real)}, p.python.path...)
	p.whole(name)
	p.imports(p.read(f), "", 0)
}

// findPython finds the standard library of an interpreter: beside it, in a
// directory pythonX.Y below ../lib.
func (p *predictor) findPython(program string) *interpreter {
	lib := path.Join("/", path.Dir(program), "../lib")
	var version string
	if v := strings.TrimPrefix(path.Base(program), "python"); strings.Contains(v, ".") {
		version = v
	} else {
		for _, name := range p.tree.names(lib) {
			if strings.HasPrefix(name, "python3.") && p.tree.isDir(path.Join(lib, name)) {
				version = max(version, strings.TrimPrefix(name, "python"))
			}
		}
	}
	stdlib := path.Join(lib, "python"+version)
	if version == "" || !p.tree.isDir(stdlib) {
		return nil
	}
	py := &interpreter{tag: "cpython-" + strings.ReplaceAll(version, ".", ""), stdlib: stdlib, loaded: map[string]bool{}}
	if v := p.env["PYTHONPATH"]; v != "" {
		py.path = strings.Split(v, ":")
	}
	py.path = append(py.path, stdlib, stdlib+"/lib-dynload",
		"/usr/local/lib/python"+version+"/dist-packages", "/usr/lib/python3/dist-packages", stdlib+"/site-packages")
	py.path = slices.DeleteFunc(py.path, func(dir string) bool { return !p.tree.isDir(dir) })
	return py
}

// importModule takes a module and, before it, the packages it is in. It reports
// whether there is such a module.
func (p *predictor) importModule(name string, depth int) bool {
	if name == "" || strings.Contains(name, "/") || depth > 200 {
		return false
	}
	parent, nested := parentModule(name)
	if nested && !p.importModule(parent, depth+1) {
		return false
	}
	if found, ok := p.python.loaded[name]; ok {
		return found
	}
	p.python.loaded[name] = true
	base := strings.ReplaceAll(name, ".", "/")
	for _, dir := range p.python.path {
		if p.load(path.Join(dir, base), name, depth) {
			return true
		}
	}
	p.python.loaded[name] = false
	return false
}

func parentModule(name string) (parent string, nested bool) {
	i := strings.LastIndexByte(name, '.')
	if i < 0 {
		return "", false
	}
	return name[:i], true
}

// load takes the files of the module at a path: a package, an extension or a
// source file with its compiled form.
func (p *predictor) load(base, name string, depth int) bool {
	if _, f, ok := p.tree.Resolve(base); ok && f.Mode&erofs.ModeType == erofs.ModeDir {
		if _, f, ok := p.tree.Resolve(base + "/__init__.py"); ok {
			p.source(base+"/__init__.py", path.Join(base, "__pycache__", "__init__."+p.python.tag+".pyc"), f, name, depth)
			return true
		}
	}
	dir, file := path.Split(base)
	for _, entry := range p.tree.names(dir) {
		if strings.HasPrefix(entry, file+".") && strings.HasSuffix(entry, ".so") &&
			(entry == file+".so" || strings.Contains(entry, p.python.tag) || strings.Contains(entry, ".abi3.")) {
			p.module(path.Join(dir, entry))
			p.cython(path.Join(dir, entry), depth)
			return true
		}
	}
	if _, f, ok := p.tree.Resolve(base + ".py"); ok {
		parent, _ := parentModule(name)
		p.source(base+".py", path.Join(dir, "__pycache__", file+"."+p.python.tag+".pyc"), f, parent, depth)
		return true
	}
	// A directory without __init__.py is a namespace package.
	return p.tree.isDir(base)
}

// cython follows the imports of a module that Cython made: their names stand in
// it as strings, among others. Those that name a module of the standard library
// are taken for imports.
func (p *predictor) cython(name string, depth int) {
	_, f, ok := p.tree.regular(name)
	if !ok {
		return
	}
	content := p.read(f)
	if !bytes.Contains(content, []byte("__pyx_")) {
		return
	}
	for word := range bytes.SplitSeq(content, []byte{0}) {
		if len(word) < 3 || len(word) > 40 || bytes.ContainsAny(word, "./ %_") {
			continue
		}
		if _, _, ok := p.tree.regular(path.Join(p.python.stdlib, string(word)+".py")); ok {
			p.importModule(string(word), depth+1)
		}
	}
}

// source takes a module's compiled form, or its source where there is none, and
// follows its imports. In is the package that relative imports start from.
func (p *predictor) source(name, compiled string, f File, in string, depth int) {
	if _, _, ok := p.tree.regular(compiled); ok {
		p.whole(compiled)
	} else {
		p.whole(name)
	}
	if f.Size > 0 {
		p.imports(p.read(f), in, depth+1)
	}
}

// imports follows the import statements of a source, in order.
func (p *predictor) imports(source []byte, in string, depth int) {
	for _, s := range importStatements(source) {
		module := s.module
		if s.level > 0 {
			base := in
			for range s.level - 1 {
				base, _ = parentModule(base)
			}
			module = strings.Trim(base+"."+s.module, ".")
		}
		if !p.importModule(module, depth) {
			continue
		}
		for _, name := range s.names {
			// It may be a module of the package, or a name defined in it.
			p.importModule(module+"."+name, depth)
		}
	}
}
