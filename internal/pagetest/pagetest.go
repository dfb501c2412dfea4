// Package pagetest keeps generated parts of documentation pages up to date: a test fails
// where a part differs from what the code generates, and writes it with -update.
package pagetest

import (
	"flag"
	"os"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write the generated parts of documentation pages")

// Section compares the part of a page between the comments "<!-- name -->" and
// "<!-- end of name -->", each on a line of its own, with what the code generates.
func Section(t testing.TB, path, name, want string) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	begin, end := "<!-- "+name+" -->\n", "<!-- end of "+name+" -->\n"
	before, rest, ok := strings.Cut(string(b), begin)
	got, after, closed := strings.Cut(rest, end)
	if !ok || !closed {
		t.Fatalf("%s has no lines %q and %q", path, strings.TrimSpace(begin), strings.TrimSpace(end))
	}
	if got == want {
		return
	}
	if !*update {
		t.Errorf("%s, part %s, is out of date: run go test with -update. It should be\n%s", path, name, want)
		return
	}
	if err := os.WriteFile(path, []byte(before+begin+want+end+after), 0o644); err != nil { //nolint:gosec // a page of the repository
		t.Fatal(err)
	}
}
