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

// page is a Markdown file.
type page struct {
	path     string   // from the top of the source
	text     string   // all of it
	prose    string   // all but code
	code     []string // lines of code blocks, and code spans
	spans    []string // code spans alone
	headings []string
	anchors  map[string]bool
}

// readDocs reads every Markdown file of the source.
func readDocs(t *testing.T) map[string]*page {
	t.Helper()
	pages := map[string]*page{}
	walkSource(t, func(path string) {
		if filepath.Ext(path) != ".md" {
			return
		}
		b, err := os.ReadFile(filepath.Join("..", path))
		if err != nil {
			t.Fatal(err)
		}
		pages[path] = readPage(path, string(b))
	})
	if len(pages) < 5 {
		t.Fatalf("only %d pages", len(pages))
	}
	return pages
}

// walkSource calls f with each file of the source, by its path from the top.
func walkSource(t *testing.T, f func(path string)) {
	t.Helper()
	err := filepath.WalkDir("..", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && path != ".." && (d.Name() == ".cache" || d.Name() == ".git" || d.Name() == "bin") {
			return filepath.SkipDir
		}
		if !d.IsDir() {
			rel, _ := filepath.Rel("..", path)
			f(rel)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

var (
	spanPattern = regexp.MustCompile("`([^`]+)`")
	linkPattern = regexp.MustCompile(`\[([^\]]*)\]\(([^)\s]+)\)`)
)

func readPage(path, text string) *page {
	p := &page{path: path, text: text, anchors: map[string]bool{}}
	var prose strings.Builder
	fenced := false
	for line := range strings.Lines(text) {
		trimmed := strings.TrimSpace(line)
		switch {
		case strings.HasPrefix(trimmed, "```"):
			fenced = !fenced
			continue
		case fenced:
			p.code = append(p.code, trimmed)
			continue
		}
		if title, ok := strings.CutPrefix(strings.TrimLeft(line, "#"), " "); ok && strings.HasPrefix(line, "#") {
			title = strings.TrimSpace(title)
			p.headings = append(p.headings, title)
			anchor := slug(title)
			for n := 1; p.anchors[anchor]; n++ {
				anchor = fmt.Sprintf("%s-%d", slug(title), n)
			}
			p.anchors[anchor] = true
		}
		prose.WriteString(line)
	}
	// Spans may go over the end of a line.
	for _, m := range spanPattern.FindAllStringSubmatch(prose.String(), -1) {
		p.spans = append(p.spans, strings.Join(strings.Fields(m[1]), " "))
	}
	p.code = append(p.code, p.spans...)
	p.prose = spanPattern.ReplaceAllString(prose.String(), "code")
	return p
}

// slug is the anchor that GitHub gives a heading.
func slug(title string) string {
	title = linkPattern.ReplaceAllString(title, "$1")
	var b strings.Builder
	for _, r := range strings.ToLower(title) {
		switch {
		case r == ' ':
			b.WriteByte('-')
		case r == '-' || r == '_' || r >= 'a' && r <= 'z' || r >= '0' && r <= '9':
			b.WriteRune(r)
		}
	}
	return b.String()
}

// TestDocsLinks follows the relative links of all pages, and their anchors.
func TestDocsLinks(t *testing.T) {
	pages := readDocs(t)
	links := 0
	for _, p := range pages {
		for _, m := range linkPattern.FindAllStringSubmatch(p.prose, -1) {
			target, anchor, _ := strings.Cut(m[2], "#")
			if strings.Contains(target, ":") {
				continue // an URL
			}
			links++
			path := p.path
			if target != "" {
				path = filepath.Join(filepath.Dir(p.path), target)
			}
			if _, err := os.Stat(filepath.Join("..", path)); err != nil {
				t.Errorf("%s: link to %s: %v", p.path, m[2], err)
				continue
			}
			if anchor == "" {
				continue
			}
			if to := pages[path]; to == nil || !to.anchors[anchor] {
				t.Errorf("%s: link to %s: there is no such heading", p.path, m[2])
			}
		}
	}
	if links < 20 {
		t.Errorf("only %d links were found", links)
	}
}

var (
	makePattern   = regexp.MustCompile(`(?:^|&& |; )make ([a-z-]+)`)
	targetPattern = regexp.MustCompile(`(?m)^([a-z-]+):`)
)

// TestDocsCommands looks up the targets of make and the subcommands of ours that pages
// name.
func TestDocsCommands(t *testing.T) {
	makefile, err := os.ReadFile("../Makefile")
	if err != nil {
		t.Fatal(err)
	}
	targets := map[string]bool{}
	for _, m := range targetPattern.FindAllStringSubmatch(string(makefile), -1) {
		targets[m[1]] = true
	}
	programs := map[string]map[string]bool{}
	for _, program := range []string{"lacunactl", "lacuna-snapshotter"} {
		programs[program] = commands(t, filepath.Join("../cmd", program))
	}
	found := 0
	for _, p := range readDocs(t) {
		for _, line := range p.code {
			for _, m := range makePattern.FindAllStringSubmatch(line, -1) {
				if found++; !targets[m[1]] {
					t.Errorf("%s: make %s: no such target", p.path, m[1])
				}
			}
			for program, known := range programs {
				for _, word := range subcommands(line, program) {
					if found++; !known[word] {
						t.Errorf("%s: %s %s: no such command", p.path, program, word)
					}
				}
			}
		}
	}
	if found < 30 {
		t.Errorf("only %d commands were found", found)
	}
}

// commands are the names of a program's commands, by their definitions for cobra.
func commands(t *testing.T, dir string) map[string]bool {
	t.Helper()
	names := map[string]bool{"help": true, "completion": true} // cobra's own
	for _, f := range parseDir(t, dir) {
		ast.Inspect(f, func(n ast.Node) bool {
			pair, ok := n.(*ast.KeyValueExpr)
			if !ok {
				return true
			}
			if key, ok := pair.Key.(*ast.Ident); !ok || key.Name != "Use" {
				return true
			}
			if lit, ok := pair.Value.(*ast.BasicLit); ok {
				use, _ := strconv.Unquote(lit.Value)
				name, _, _ := strings.Cut(use, " ")
				names[name] = true
			}
			return true
		})
	}
	return names
}

// parseDir parses the files of a package that are no tests.
func parseDir(t *testing.T, dir string) (list []*ast.File) {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join(dir, "*.go"))
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range paths {
		if strings.HasSuffix(path, "_test.go") {
			continue
		}
		f, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, f)
	}
	return list
}

var wordPattern = regexp.MustCompile(`^[a-z-]+$`)

// subcommands are the command words of calls of a program in a line of code: the first
// word that is no flag, and after "index" the second.
func subcommands(line, program string) (words []string) {
	fields := strings.Fields(line)
	for i, field := range fields {
		if field != program {
			continue
		}
		for i++; i < len(fields); i++ {
			word := fields[i]
			if word == "--config" {
				i++ // its value
				continue
			}
			if strings.HasPrefix(word, "-") {
				continue
			}
			if !wordPattern.MatchString(word) {
				break
			}
			words = append(words, word)
			if word != "index" {
				break
			}
		}
	}
	return words
}

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
			f, err := parser.ParseFile(token.NewFileSet(), filepath.Join("..", path), nil, parser.SkipObjectResolution)
			if err != nil {
				t.Errorf("%s: %v", span, err)
				continue
			}
			known[path] = functions(f)
		}
		if !known[path][name] {
			t.Errorf("%s: there is no such function", span)
		}
	}
	if found < 20 {
		t.Errorf("only %d references were found", found)
	}
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

// TestDocsNotes compares what make bench and make chaos put behind their tables with
// what is there.
func TestDocsNotes(t *testing.T) {
	for _, name := range []string{"benchmarks", "reliability"} {
		page, err := os.ReadFile("../docs/" + name + ".md")
		if err != nil {
			t.Fatal(err)
		}
		notes, err := os.ReadFile("../docs/" + name + "-notes.md")
		if err != nil {
			t.Fatal(err)
		}
		if !strings.HasSuffix(string(page), "\n"+string(notes)) {
			t.Errorf("docs/%s.md does not end with docs/%s-notes.md", name, name)
		}
	}
}
