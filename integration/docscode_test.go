package integration

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/lacuna-snapshotter/lacuna/config"
)

// TestDocsNames looks up the files, tests, metrics and configuration keys that pages
// name.
func TestDocsNames(t *testing.T) {
	var files []string
	tests := map[string]bool{}
	testPattern := regexp.MustCompile(`(?m)^func (Test\w+)\(`)
	walkSource(t, func(path string) {
		files = append(files, path)
		if strings.HasSuffix(path, "_test.go") {
			b, err := os.ReadFile(filepath.Join("..", path))
			if err != nil {
				t.Fatal(err)
			}
			for _, m := range testPattern.FindAllStringSubmatch(string(b), -1) {
				tests[m[1]] = true
			}
		}
	})
	keys, sections := configKeys()
	metrics := strings.Join(productLiterals(t), "\n") + "\n"
	var (
		filePattern   = regexp.MustCompile(`^[\w./-]+\.(go|md|toml|service|sh)$`)
		metricPattern = regexp.MustCompile(`^lacuna_[a-z_]+`)
		testName      = regexp.MustCompile(`\bTest[A-Z]\w+`)
		keyPattern    = regexp.MustCompile(`^([a-z]+(?:\.[a-z]+)*)\.([a-z_]+)(?: = .*)?$`)
		tablePattern  = regexp.MustCompile(`^\[([a-z.]+)\](?: ([a-z_]+))?$`)
	)
	for _, p := range readDocs(t) {
		for _, span := range p.spans {
			for _, name := range testName.FindAllString(span, -1) {
				if !tests[name] {
					t.Errorf("%s: there is no test %s", p.path, name)
				}
			}
			if m := metricPattern.FindString(span); m != "" && !strings.Contains(metrics, m+"\n") {
				t.Errorf("%s: there is no metric %s", p.path, m)
			}
			if filePattern.MatchString(span) {
				name := strings.TrimPrefix(span, "./")
				if !strings.HasPrefix(name, "/") && name != "hosts.toml" && name != "config.toml" && !slices.ContainsFunc(files, func(f string) bool {
					return f == name || strings.HasSuffix(f, "/"+name)
				}) {
					t.Errorf("%s: there is no file %s", p.path, span)
				}
				continue
			}
			if m := keyPattern.FindStringSubmatch(span); m != nil && sections[m[1]] && !keys[m[1]+"."+m[2]] {
				t.Errorf("%s: there is no configuration key %s", p.path, span)
			}
			if m := tablePattern.FindStringSubmatch(span); m != nil && (!sections[m[1]] || m[2] != "" && !keys[m[1]+"."+m[2]]) {
				t.Errorf("%s: there is no configuration key %s", p.path, span)
			}
		}
	}
}

// configKeys are those of the built-in configuration file.
func configKeys() (keys, sections map[string]bool) {
	keys, sections = map[string]bool{}, map[string]bool{}
	section := ""
	for line := range strings.Lines(config.Default()) {
		line = strings.TrimSpace(line)
		if name, ok := strings.CutPrefix(line, "["); ok {
			section, _, _ = strings.Cut(name, "]")
			sections[section] = true
			continue
		}
		if key, _, ok := strings.Cut(line, "="); ok && !strings.HasPrefix(line, "#") {
			keys[section+"."+strings.TrimSpace(key)] = true
		}
	}
	return keys, sections
}

// TestReadPath looks up each reference of docs/read-path.md, such as
// "ondemand/fill.go: (*Blob).Fill".
func TestReadPath(t *testing.T) {
	p := readDocs(t)["docs/read-path.md"]
	if p == nil {
		t.Fatal("no page")
	}
	pattern := regexp.MustCompile(`^([\w/]+\.go): (.+)$`)
	known := map[string]map[string]bool{}
	found := 0
	for _, span := range p.spans {
		m := pattern.FindStringSubmatch(span)
		if m == nil {
			continue
		}
		found++
		path, name := m[1], m[2]
		if known[path] == nil {
			known[path] = map[string]bool{}
			if f, err := parser.ParseFile(token.NewFileSet(), filepath.Join("..", path), nil, parser.SkipObjectResolution); err == nil {
				known[path] = functions(f)
			}
		}
		if !known[path][name] {
			t.Errorf("%s: there is no such function; that name is in %q", span, declaredIn(t, name))
		}
	}
	if found < 20 {
		t.Errorf("only %d references were found", found)
	}
}

// declaredIn lists the files that declare a name, to help those who correct a page.
func declaredIn(t *testing.T, name string) (files []string) {
	t.Helper()
	walkSource(t, func(path string) {
		if filepath.Ext(path) != ".go" || strings.HasSuffix(path, "_test.go") {
			return
		}
		f, err := parser.ParseFile(token.NewFileSet(), filepath.Join("..", path), nil, parser.SkipObjectResolution)
		if err == nil && functions(f)[name] {
			files = append(files, path)
		}
	})
	return files
}

// functions are the names of a file's functions and methods, as "Name" and
// "(*Type).Name", and those of its types.
func functions(f *ast.File) map[string]bool {
	names := map[string]bool{}
	for _, d := range f.Decls {
		switch d := d.(type) {
		case *ast.FuncDecl:
			name := d.Name.Name
			if d.Recv != nil {
				switch on := d.Recv.List[0].Type.(type) {
				case *ast.StarExpr:
					name = fmt.Sprintf("(*%s).%s", on.X, name)
				case *ast.Ident:
					name = on.Name + "." + name
				}
			}
			names[name] = true
		case *ast.GenDecl:
			for _, s := range d.Specs {
				if s, ok := s.(*ast.TypeSpec); ok {
					names[s.Name.Name] = true
				}
			}
		}
	}
	return names
}

// TestTroubleshooting looks up the messages in docs/troubleshooting.md, which are its
// headings and the first cells of its tables: each must be in the code, in the parts
// between "...".
func TestTroubleshooting(t *testing.T) {
	p := readDocs(t)["docs/troubleshooting.md"]
	if p == nil {
		t.Fatal("no page")
	}
	texts := productLiterals(t)
	// Headings, and the first cells of tables.
	lines := p.headings
	for line := range strings.Lines(p.text) {
		if strings.HasPrefix(line, "| `") {
			cell, _, _ := strings.Cut(line[2:], "|")
			lines = append(lines, cell)
		}
	}
	found := 0
	for _, line := range lines {
		for _, m := range spanPattern.FindAllStringSubmatch(line, -1) {
			found++
			for part := range strings.SplitSeq(m[1], "...") {
				if part = strings.TrimSpace(part); !slices.ContainsFunc(texts, func(s string) bool { return strings.Contains(s, part) }) {
					t.Errorf("no message of the code has %q", part)
				}
			}
		}
	}
	if found < 10 {
		t.Errorf("only %d messages were found", found)
	}
}

// productLiterals are the strings of all code but that of tests.
func productLiterals(t *testing.T) (texts []string) {
	t.Helper()
	for _, top := range []string{"cmd", "config", "erofs", "fetcher", "internal", "ondemand", "snapshot"} {
		err := filepath.WalkDir(filepath.Join("..", top), func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				for _, f := range parseDir(t, path) {
					texts = append(texts, literals(f)...)
				}
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return texts
}

// literals are a file's strings.
func literals(f *ast.File) (list []string) {
	ast.Inspect(f, func(n ast.Node) bool {
		if lit, ok := n.(*ast.BasicLit); ok && lit.Kind == token.STRING {
			s, _ := strconv.Unquote(lit.Value)
			list = append(list, s)
		}
		return true
	})
	return list
}
