package pagetest

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/cobra"
)

func TestSection(t *testing.T) {
	path := filepath.Join(t.TempDir(), "page.md")
	const page = "before\n<!-- part -->\nold\n<!-- end of part -->\nafter\n"
	if err := os.WriteFile(path, []byte(page), 0o600); err != nil {
		t.Fatal(err)
	}
	Section(t, path, "part", "old\n")
	*update = true
	defer func() { *update = false }()
	Section(t, path, "part", "new\n")
	if b, err := os.ReadFile(path); err != nil || string(b) != strings.Replace(page, "old", "new", 1) {
		t.Errorf("%s, %v", b, err)
	}
}

func TestCommands(t *testing.T) {
	root := &cobra.Command{Use: "p", Short: "A program"}
	sub := &cobra.Command{Use: "do THING", Short: "Do a thing", Example: "  p do it", Run: func(*cobra.Command, []string) {}}
	sub.Flags().String("how", "well", "`manner` of doing")
	root.AddCommand(sub, &cobra.Command{Use: "secret", Hidden: true, Run: func(*cobra.Command, []string) {}})
	got := Commands(root)
	for _, want := range []string{"### `p do`\n\nDo a thing.\n", "```\np do THING [flags]\n```", "\np do it\n", "| `--how manner` | manner of doing | `well` |\n"} {
		if !strings.Contains(got, want) {
			t.Errorf("no %q in\n%s", want, got)
		}
	}
	if strings.Contains(got, "secret") {
		t.Errorf("hidden commands are shown:\n%s", got)
	}
}
