package main

import (
	"errors"
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/lacuna-snapshotter/lacuna/internal/statusapi"
)

func statusCommand(s *settings) *cobra.Command {
	return &cobra.Command{
		Use:   "status",
		Short: "Show the state of the running daemon",
		Long: `Show the state of the running daemon: its transport, layers, disk, registries that
fail, and containers to restart.`,
		Example: `  lacunactl status
  lacunactl status --json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := s.load()
			if err != nil {
				return err
			}
			var st statusapi.Status
			if err := statusapi.Get(cmd.Context(), c.Status, "status", &st); err != nil {
				return err
			}
			out := cmd.OutOrStdout()
			if s.json {
				return printJSON(out, st)
			}
			printStatus(out, &st, time.Now())
			if st.Problem != "" {
				return errors.New(st.Problem)
			}
			return nil
		},
	}
}

// printStatus prints the status for people.
func printStatus(out io.Writer, st *statusapi.Status, now time.Time) {
	since := func(t time.Time) string {
		return fmt.Sprintf("%s (%s ago)", t.Format("2006-01-02 15:04:05 MST"), now.Sub(t).Round(time.Second))
	}
	fmt.Fprintf(out, "version      %s\nstarted      %s\nroot         %s\ntransport    %s\n",
		st.Version, since(st.Started), st.Root, st.Transport)
	for _, reason := range st.PassedOver {
		fmt.Fprintf(out, "             %s\n", reason)
	}
	anchor := "and an anchor"
	if !st.Anchored {
		anchor = "no anchor"
	}
	fmt.Fprintf(out, "keepers      %d, %s\n", st.Keepers, anchor)
	fmt.Fprintf(out, "layers       %d filling, %d complete, %d evicted, %d leaving, %d quarantined\n", st.Filling, st.Complete, st.Evicted, st.Leaving, st.Quarantined)
	limit := ""
	if st.CacheLimit > 0 {
		limit = " of at most " + byteCount(st.CacheLimit)
	}
	fmt.Fprintf(out, "disk         %s%s; %s of %s free, %s\n", byteCount(st.Allocated), limit, byteCount(st.Disk.Free), byteCount(st.Disk.Size), st.Disk.FileSystem)
	fmt.Fprintf(out, "fallbacks    %d\n", st.Fallbacks)
	fmt.Fprintf(out, "fetched      %s in %d fetches for readers and %d ahead, %d failed\n",
		byteCount(st.BytesFetched), st.Fetches.Demand, st.Fetches.Ahead, st.Fetches.Failed)
	for _, p := range st.Problems {
		fmt.Fprintf(out, "\nproblem: %s\n", p)
	}
	if st.Quarantined+st.Fallbacks > 0 {
		fmt.Fprintf(out, "\nwhy layers are quarantined or left to containerd: lacunactl layers\n")
	}
	for _, r := range st.Registries {
		fmt.Fprintf(out, "\nregistry %s has failed since %s, %d times: %s\n", r.Registry, since(r.Since), r.Failures, r.Error)
	}
	for _, u := range st.Unserved {
		fmt.Fprintf(out, "\nlayer %s was not served until %s; restart the containers of these snapshots, whose reads of holes may have given %s:\n",
			u.Layer.Encoded()[:12], since(u.Found), u.Reads)
		for _, key := range u.Snapshots {
			fmt.Fprintf(out, "  %s\n", key)
		}
	}
}

func layersCommand(s *settings) *cobra.Command {
	return &cobra.Command{
		Use:   "layers",
		Short: "List the layers on this node, and why others are not lazy",
		Example: `  lacunactl layers
  lacunactl layers --json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := s.load()
			if err != nil {
				return err
			}
			var list statusapi.Layers
			if err := statusapi.Get(cmd.Context(), c.Status, "layers", &list); err != nil {
				return err
			}
			out := cmd.OutOrStdout()
			if s.json {
				return printJSON(out, list)
			}
			w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
			fmt.Fprintln(w, "LAYER\tSTATE\tFILLED\tFILES\tDISK\tIMAGE")
			for _, l := range list.Layers {
				fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n", l.Layer.Encoded()[:12], l.State, byteCount(l.Filled), byteCount(l.BlobSize), byteCount(l.Allocated), l.Ref)
			}
			if err := w.Flush(); err != nil {
				return err
			}
			for _, l := range list.Layers {
				if l.Reason != "" {
					fmt.Fprintf(out, "\n%s is quarantined: %s\n", l.Layer.Encoded()[:12], l.Reason)
				}
			}
			for _, f := range list.Fallbacks {
				fmt.Fprintf(out, "\n%s of %s was left to containerd: %s (%s)\n", f.Layer.Encoded()[:12], f.Ref, f.Reason, f.Time.Format("2006-01-02 15:04:05 MST"))
			}
			return nil
		},
	}
}
