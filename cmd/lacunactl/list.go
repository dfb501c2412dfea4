package main

import (
	"errors"
	"fmt"
	"strings"
	"text/tabwriter"

	"github.com/opencontainers/go-digest"
	"github.com/spf13/cobra"

	"github.com/lacuna-snapshotter/lacuna/fetcher/index"
)

// stored is an index in the store.
type stored struct {
	Layer  digest.Digest `json:"layer"`
	Size   int64         `json:"size"`
	Index  int64         `json:"indexSize"`
	From   string        `json:"from,omitempty"` // image that it was downloaded with, from a registry
	Images []string      `json:"images"`         // manifests of the images whose index was made here
	Note   string        `json:"note,omitempty"` // why it cannot be used
}

func listCommand(x *indexSettings) *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "List the indexes in the store",
		Example: `  lacunactl index list
  lacunactl index list --json --store ./indexes`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := x.load()
			if err != nil {
				return err
			}
			store, err := x.store(c)
			if err != nil {
				return err
			}
			list, err := listStore(store)
			if err != nil {
				return err
			}
			out := cmd.OutOrStdout()
			if x.json {
				return printJSON(out, list)
			}
			w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
			fmt.Fprintln(w, "LAYER\tSIZE\tINDEX\tIMAGES")
			for _, s := range list {
				of := strings.Join(s.Images, " ")
				if s.From != "" {
					of = "from the registry, with " + s.From
				}
				if s.Note != "" {
					of = s.Note
				}
				fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", s.Layer.Encoded()[:12], byteCount(s.Size), byteCount(s.Index), of)
			}
			return w.Flush()
		},
	}
}

func listStore(store *index.Store) ([]stored, error) {
	layers, err := store.Layers()
	if err != nil {
		return nil, err
	}
	images, err := store.Images()
	if err != nil {
		return nil, err
	}
	of := map[digest.Digest][]string{}
	for _, i := range images {
		p, err := store.Prediction(i)
		if errors.Is(err, index.ErrFormat) || p == nil && err == nil {
			continue
		}
		if err != nil {
			return nil, err
		}
		for _, l := range p.Layers {
			of[l] = append(of[l], i.String())
		}
	}
	list := []stored{}
	for _, l := range layers {
		s := stored{Layer: l, Images: append([]string{}, of[l]...)}
		h, err := store.Head(l)
		if err == nil {
			s.Size, s.Index = h.Map.PackedSize, h.IndexSize()
		}
		origin, found, originErr := store.Origin(l)
		if found {
			s.From = origin.Ref
		}
		if err := errors.Join(err, originErr); err != nil {
			s.Note = err.Error()
		}
		list = append(list, s)
	}
	return list, nil
}

func removeCommand(x *indexSettings) *cobra.Command {
	return &cobra.Command{
		Use:   "rm DIGEST...",
		Short: "Remove indexes of layers or images from the store",
		Long: `Remove indexes of layers or images from the store.

A digest is that of a layer, or that of an image's manifest: the indexes of its layers
are removed, except those that another image in the store has too. A unique prefix of a
digest is enough. Mounted layers keep their indexes, and so do registries.`,
		Example: `  lacunactl index rm 8ce4d6f0a1b2
  lacunactl index rm sha256:8ce4d6f0a1b2c3d4e5f60718293a4b5c6d7e8f90a1b2c3d4e5f60718293a4b5c`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := x.load()
			if err != nil {
				return err
			}
			store, err := x.store(c)
			if err != nil {
				return err
			}
			removed := []digest.Digest{}
			var errs []error
			for _, arg := range args {
				gone, err := store.RemoveMatching(arg)
				removed, errs = append(removed, gone...), append(errs, err)
			}
			if x.json {
				errs = append(errs, printJSON(cmd.OutOrStdout(), removed))
			} else {
				for _, d := range removed {
					fmt.Fprintln(cmd.OutOrStdout(), "removed", d)
				}
			}
			return errors.Join(errs...)
		},
	}
}
