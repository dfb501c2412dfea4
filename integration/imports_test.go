package integration

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/lacuna-snapshotter/lacuna"

// directions reads the map of ARCHITECTURE.md: the packages of ours that each package
// may import, nil for any.
func directions(t *testing.T) map[string][]string {
	t.Helper()
	text, err := os.ReadFile("../ARCHITECTURE.md")
	if err != nil {
		t.Fatal(err)
	}
	_, after, _ := strings.Cut(string(text), "\n## Map\n")
	section, _, _ := strings.Cut(after, "\n## ")
	names := regexp.MustCompile("`([^`]+)`")
	quoted := func(cell string) (list []string) {
		list = []string{}
		for _, m := range names.FindAllStringSubmatch(cell, -1) {
			list = append(list, m[1])
		}
		return list
	}
	may := map[string][]string{}
	for line := range strings.Lines(section) {
		cells := strings.Split(strings.Trim(strings.TrimSpace(line), "|"), "|")
		if !strings.HasPrefix(line, "| `") {
			continue
		}
		if len(cells) != 3 {
			t.Fatalf("row %q has %d cells", line, len(cells))
		}
		imports, what := quoted(cells[2]), strings.TrimSpace(cells[2])
		switch {
		case what == "anything":
			imports = nil
		case len(imports) == 0 && what != "nothing":
			t.Errorf("row %q: it may import %q, which is neither packages in backticks, nor nothing, nor anything", line, what)
		}
		for _, p := range quoted(cells[0]) {
			if _, twice := may[p]; twice {
				t.Errorf("package %s has two rows in the map of ARCHITECTURE.md", p)
			}
			may[p] = imports
		}
	}
	return may
}

// TestImportDirections holds packages to the map of ARCHITECTURE.md.
func TestImportDirections(t *testing.T) {
	may := directions(t)
	out, err := exec.Command("go", "list", "-f", "{{.ImportPath}}:{{join .Imports \" \"}}", module+"/...").Output()
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for line := range strings.Lines(string(out)) {
		path, imports, _ := strings.Cut(strings.TrimSpace(line), ":")
		path = strings.TrimPrefix(path, module+"/")
		seen[path] = true
		allowed, known := may[path]
		if !known {
			t.Errorf("package %s has no row in the map of ARCHITECTURE.md", path)
			continue
		}
		for imported := range strings.FieldsSeq(imports) {
			ours, ok := strings.CutPrefix(imported, module+"/")
			if ok && allowed != nil && !slices.Contains(allowed, ours) {
				t.Errorf("%s imports %s, which the map of ARCHITECTURE.md does not allow", path, ours)
			}
		}
	}
	for path, allowed := range may {
		if !seen[path] {
			t.Errorf("the map of ARCHITECTURE.md has a row for %s, which is no package", path)
		}
		for _, ours := range allowed {
			if !seen[ours] {
				t.Errorf("the map of ARCHITECTURE.md lets %s import %s, which is no package", path, ours)
			}
		}
	}
}

// mostLines is how long a file of the product may be: one idea has room in it.
const mostLines = 350

func TestFilesAreShort(t *testing.T) {
	out, err := exec.Command("git", "-C", "..", "ls-files", "--cached", "--others", "--exclude-standard", "*.go").Output()
	if err != nil {
		t.Fatal(err)
	}
	for name := range strings.FieldsSeq(string(out)) {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		text, err := os.ReadFile(filepath.Join("..", name))
		if os.IsNotExist(err) {
			continue // deleted, and not committed yet
		}
		if err != nil {
			t.Fatal(err)
		}
		if n := bytes.Count(text, []byte("\n")); n > mostLines {
			t.Errorf("%s has %d lines, more than %d", name, n, mostLines)
		}
	}
}
