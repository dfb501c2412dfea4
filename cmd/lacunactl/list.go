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
	From   string        `json:"from,omitempty"` // the image that it came with, of a registry
	Images []string      `json:"images"`         // manifests of images indexed here
	Note   string        `json:"note,omitempty"` // what is wrong with it
}

func listCommand(x *indexSettings) *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "list the indexes that are here",
		Args:  cobra.NoArgs,
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
			fmt.Fprintln(w, "LAYER\tSIZE\tINDEX\tOF IMAGES")
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
		Short: "remove indexes that are here, of layers or of images",
		Long: `Remove indexes that are here. A digest is a layer's, or that of an image's manifest,
whose layers are meant but for those that another image indexed here has; the first
characters do where they are clear. Layers that are mounted keep their indexes, and
registries theirs.`,
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
