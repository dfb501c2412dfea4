package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"text/tabwriter"
	"time"

	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	"github.com/schollz/progressbar/v3"
	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/lacuna-snapshotter/lacuna/config"
	"github.com/lacuna-snapshotter/lacuna/fetcher"
	"github.com/lacuna-snapshotter/lacuna/fetcher/index"
	"github.com/lacuna-snapshotter/lacuna/fetcher/registry"
)

func indexCommand(s *settings) *cobra.Command {
	x := &indexSettings{settings: s}
	root := &cobra.Command{Use: "index", Short: "make, push and inspect layer indexes"}
	flags := root.PersistentFlags()
	flags.StringVar(&x.storeDir, "store", "", "directory of indexes (default: index in the daemon's root)")
	flags.StringVar(&x.platform, "platform", platforms.DefaultString(), "platform of a multi-platform image")
	flags.BoolVar(&x.plainHTTP, "plain-http", false, "speak HTTP to the registry")

	push := false
	create := &cobra.Command{
		Use:   "create IMAGE",
		Short: "make the index of an image's gzip layers from the registry",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			e, err := x.open(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			if err := e.create(cmd); err != nil || !push {
				return err
			}
			return e.push(cmd)
		},
	}
	create.Flags().BoolVar(&push, "push", false, "push it to the image's repository as well")
	root.AddCommand(create, &cobra.Command{
		Use:   "push IMAGE",
		Short: "push an index that was made here to the image's repository",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			e, err := x.open(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			return e.push(cmd)
		},
	}, &cobra.Command{
		Use:   "inspect IMAGE",
		Short: "show what an image's index holds, in the registry or here",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			e, err := x.open(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			return e.inspect(cmd)
		},
	})
	return root
}

type indexSettings struct {
	*settings
	storeDir, platform string
	plainHTTP          bool
}

// indexer is an image with the store that its indexes are in.
type indexer struct {
	*indexSettings
	config *config.Config
	client *registry.Client
	store  *index.Store
	image  *index.Image
	ref    string
}

func (x *indexSettings) open(ctx context.Context, ref string) (*indexer, error) {
	c, err := x.load()
	if err != nil {
		return nil, err
	}
	p, err := platforms.Parse(x.platform)
	if err != nil {
		return nil, err
	}
	r := c.Registry
	client, err := registry.New(registry.Options{
		HostsDirs: r.HostsDirs, DockerConfig: r.DockerConfig, PlainHTTP: r.PlainHTTP || x.plainHTTP,
		Retry: registry.Retry{Attempts: r.Attempts, Base: r.Backoff.Duration, Max: r.MaxBackoff.Duration},
		Stall: r.Stall.Duration,
	})
	if err != nil {
		return nil, err
	}
	dir := x.storeDir
	if dir == "" {
		dir = filepath.Join(c.Root, "index")
	}
	store, err := index.OpenStore(dir)
	if err != nil {
		return nil, err
	}
	image, err := index.ResolveImage(ctx, client, ref, platforms.Only(p))
	if err != nil {
		return nil, err
	}
	return &indexer{x, c, client, store, image, ref}, nil
}

func (e *indexer) create(cmd *cobra.Command) error {
	opts := buildOptions(e.config)
	began := time.Now()
	err := index.CreateImage(cmd.Context(), e.image, e.store, opts, func(l index.ImageLayer, r io.Reader) io.Reader {
		bar := newBar(cmd, l.Size, "index "+l.Digest.Encoded()[:12])
		return io.TeeReader(r, bar)
	})
	if err != nil {
		return err
	}
	return e.report(cmd, "made in "+time.Since(began).Round(time.Millisecond).String())
}

func buildOptions(c *config.Config) fetcher.BuildOptions {
	return fetcher.BuildOptions{SpanSize: int64(c.Index.SpanSize), Spacing: int64(c.Index.Spacing), Grain: int64(c.Index.Grain)}
}

// newBar is a progress bar on a terminal, and silent elsewhere.
func newBar(cmd *cobra.Command, n int64, what string) *progressbar.ProgressBar {
	if f, ok := cmd.ErrOrStderr().(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		return progressbar.DefaultBytes(n, what)
	}
	return progressbar.DefaultBytesSilent(n, what)
}

func (e *indexer) push(cmd *cobra.Command) error {
	total := int64(0)
	for _, l := range e.image.Layers {
		if h, err := e.store.Head(l.Digest); err == nil {
			total += h.BlobSize()
		}
	}
	bar := newBar(cmd, total, "push")
	pushed, err := index.Push(cmd.Context(), e.client, e.image, e.store, func(n int64) { _ = bar.Add64(n) })
	if err != nil {
		return err
	}
	if e.json {
		return printJSON(cmd.OutOrStdout(), pushed)
	}
	how := "the registry lists it as a referrer"
	if pushed.Tagged {
		how = "by tag, for this registry has no referrers API"
	}
	fmt.Fprintf(cmd.OutOrStdout(), "pushed %s (%s)\n", pushed.Manifest.Digest, how)
	return nil
}

// row is one layer in a listing.
type row struct {
	Layer       digest.Digest `json:"layer"`
	Size        int64         `json:"size"`
	Index       int64         `json:"indexSize"`
	Head        int64         `json:"headSize"`
	Checkpoints int           `json:"checkpoints"`
	Spans       int64         `json:"spans"`
	Files       int64         `json:"blobSize"`
	Note        string        `json:"note,omitempty"`
}

func rowOf(l index.ImageLayer, h *index.Head) row {
	return row{l.Digest, l.Size, h.BlobSize(), h.Size, len(h.Map.Checkpoints), h.Map.Spans(), h.Map.BlobSize, ""}
}

// report lists what the store has of the image.
func (e *indexer) report(cmd *cobra.Command, note string) error {
	var rows []row
	for _, l := range e.image.Layers {
		h, err := e.store.Head(l.Digest)
		if err != nil {
			rows = append(rows, row{Layer: l.Digest, Size: l.Size, Note: err.Error()})
			continue
		}
		rows = append(rows, rowOf(l, h))
	}
	return e.print(cmd, rows, note)
}

// inspect lists what the registry has, or what the store has where the registry
// has none.
func (e *indexer) inspect(cmd *cobra.Command) error {
	artifact, err := index.Find(cmd.Context(), e.image.Repo, e.image.Manifest.Digest)
	if errors.Is(err, index.ErrNone) {
		return e.report(cmd, "the registry has no index; this is what the store has")
	}
	if err != nil {
		return err
	}
	var rows []row
	for _, l := range e.image.Layers {
		r := row{Layer: l.Digest, Size: l.Size, Note: "no index"}
		for _, entry := range artifact.Entries {
			if entry.Layer != l.Digest {
				continue
			}
			b, err := index.FetchHead(cmd.Context(), e.image.Repo, entry)
			if err != nil {
				return err
			}
			h, err := index.DecodeHead(b)
			if err != nil {
				return err
			}
			r = rowOf(l, h)
		}
		rows = append(rows, r)
	}
	return e.print(cmd, rows, "in "+e.image.Repo.Name())
}

func (e *indexer) print(cmd *cobra.Command, rows []row, note string) error {
	out := cmd.OutOrStdout()
	if e.json {
		return printJSON(out, rows)
	}
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "LAYER\tSIZE\tINDEX\tBEFORE MOUNT\tCHECKPOINTS\tSPANS\tFILES")
	var size, total int64
	for _, r := range rows {
		if r.Index == 0 {
			fmt.Fprintf(w, "%s\t%s\t%s\n", r.Layer.Encoded()[:12], bytes(r.Size), r.Note)
			continue
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%d\t%d\t%s\n", r.Layer.Encoded()[:12], bytes(r.Size), bytes(r.Index), bytes(r.Head), r.Checkpoints, r.Spans, bytes(r.Files))
		size, total = size+r.Size, total+r.Index
	}
	if err := w.Flush(); err != nil {
		return err
	}
	if size > 0 {
		fmt.Fprintf(out, "index: %s for %s of layers, %.2f %%; %s\n", bytes(total), bytes(size), 100*float64(total)/float64(size), note)
	}
	return nil
}
