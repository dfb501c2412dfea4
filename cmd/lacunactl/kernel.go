package main

import (
	"errors"
	"fmt"
	"io"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/lacuna-snapshotter/lacuna/internal/feature"
	"github.com/lacuna-snapshotter/lacuna/internal/kernel"
)

func kernelCommand(s *settings) *cobra.Command {
	return &cobra.Command{
		Use:   "kernel",
		Short: "Show which transports this kernel has the features for",
		Long: `Show which transports this kernel has the features for, and why others are missing.

Each feature is probed, as root: no daemon is needed, and nothing is changed. The
transport that a daemon has chosen is in lacunactl status.`,
		Example: `  lacunactl kernel
  lacunactl kernel --json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			release, err := feature.Release()
			if err != nil {
				return err
			}
			r := probe(release)
			if s.json {
				return printJSON(cmd.OutOrStdout(), r)
			}
			return r.print(cmd.OutOrStdout())
		},
	}
}

// kernelReport is what the probes found.
type kernelReport struct {
	Kernel     string    `json:"kernel"`
	Transports []finding `json:"transports"`
	Features   []finding `json:"features"`
}

// finding is one feature, or one transport, for which Needs and For are empty.
type finding struct {
	Name   string `json:"name"`
	State  string `json:"state"`            // yes, no, or unknown where a probe cannot tell
	Reason string `json:"reason,omitempty"` // why not yes
	Needs  string `json:"needs,omitempty"`
	For    string `json:"for,omitempty"`
}

func probe(release string) kernelReport {
	r := kernelReport{Kernel: release}
	for _, f := range kernel.Features {
		found := findingOf(f.Name, f.Check())
		found.Needs, found.For = f.Needs(), f.For
		r.Features = append(r.Features, found)
	}
	for _, t := range kernel.Transports {
		r.Transports = append(r.Transports, findingOf(t.Name, t.Check()))
	}
	return r
}

func findingOf(name string, err error) finding {
	switch {
	case err == nil:
		return finding{Name: name, State: "yes"}
	case errors.Is(err, feature.ErrMissing):
		return finding{Name: name, State: "no", Reason: err.Error()}
	}
	return finding{Name: name, State: "unknown", Reason: err.Error()}
}

// print is for people.
func (r kernelReport) print(out io.Writer) error {
	fmt.Fprintf(out, "kernel %s\n\n", r.Kernel)
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "TRANSPORT\tHERE")
	for _, t := range r.Transports {
		fmt.Fprintf(w, "%s\t%s\n", t.Name, t.State)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	fmt.Fprintln(out)
	fmt.Fprintln(w, "FEATURE\tHERE\tNEEDED FOR")
	for _, f := range r.Features {
		fmt.Fprintf(w, "%s\t%s\t%s\n", f.Name, f.State, f.For)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	first := true
	for _, f := range r.Features {
		if f.State == "yes" {
			continue
		}
		if first {
			fmt.Fprintln(out)
			first = false
		}
		fmt.Fprintln(out, f.Reason)
	}
	return nil
}
