package main

import (
	"testing"

	"github.com/spf13/cobra"

	"github.com/lacuna-snapshotter/lacuna/internal/pagetest"
)

func TestCommandsPage(t *testing.T) {
	pagetest.Section(t, "../../docs/commands.md", "lacunactl", pagetest.Commands(command(&settings{})))
}

// TestHelp has each command say what it does in the same form, with an example.
func TestHelp(t *testing.T) {
	var each func(*cobra.Command)
	each = func(cmd *cobra.Command) {
		if first := cmd.Short[0]; first < 'A' || first > 'Z' || cmd.Short[len(cmd.Short)-1] == '.' {
			t.Errorf("%s: %q does not begin with a capital letter, or ends with a period", cmd.CommandPath(), cmd.Short)
		}
		if cmd.Example == "" {
			t.Errorf("%s has no example", cmd.CommandPath())
		}
		for _, sub := range cmd.Commands() {
			each(sub)
		}
	}
	each(command(&settings{}))
}
