package pagetest

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// Commands describes a program's commands in Markdown: all that are not hidden, with
// their flags.
func Commands(root *cobra.Command) string {
	root.InitDefaultHelpCmd()
	root.InitDefaultVersionFlag()
	var b strings.Builder
	describe(&b, root)
	return b.String()
}

func describe(b *strings.Builder, cmd *cobra.Command) {
	text := cmd.Long
	if text == "" {
		text = cmd.Short + "."
	}
	fmt.Fprintf(b, "\n### `%s`\n\n%s\n", cmd.CommandPath(), text)
	if cmd.Runnable() {
		fmt.Fprintf(b, "\n```\n%s\n```\n", cmd.UseLine())
	}
	if cmd.Example != "" {
		fmt.Fprintf(b, "\nFor example:\n\n```\n%s\n```\n", unindent(cmd.Example))
	}
	cmd.InitDefaultHelpFlag()
	flags(b, cmd.NonInheritedFlags())
	for _, sub := range cmd.Commands() {
		if sub.IsAvailableCommand() && sub.Name() != "help" && sub.Name() != "completion" {
			describe(b, sub)
		}
	}
}

// flags is a table of a command's own flags; those that all have are left out.
func flags(b *strings.Builder, set *pflag.FlagSet) {
	first := true
	set.VisitAll(func(f *pflag.Flag) {
		if f.Hidden || f.Name == "help" || f.Name == "version" {
			return
		}
		if first {
			b.WriteString("\n| flag | what it does | default |\n|---|---|---|\n")
			first = false
		}
		value := ""
		kind, usage := pflag.UnquoteUsage(f)
		if kind != "" {
			kind = " " + kind
		}
		if f.DefValue != "" && f.DefValue != "false" && f.Name != "platform" {
			value = "`" + f.DefValue + "`"
		}
		fmt.Fprintf(b, "| `--%s%s` | %s | %s |\n", f.Name, kind, strings.ReplaceAll(usage, "|", "\\|"), value)
	})
}

func unindent(s string) string {
	lines := strings.Split(s, "\n")
	for i, line := range lines {
		lines[i] = strings.TrimPrefix(line, "  ")
	}
	return strings.Join(lines, "\n")
}
