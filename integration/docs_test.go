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
	"strconv"
	"strings"
	"testing"
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
