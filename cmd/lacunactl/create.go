package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/schollz/progressbar/v3"
	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/lacuna-snapshotter/lacuna/config"
	"github.com/lacuna-snapshotter/lacuna/fetcher/index"
	"github.com/lacuna-snapshotter/lacuna/fetcher/spans"
)

func createCommand(x *indexSettings) *cobra.Command {
	var push, force bool
	cmd := &cobra.Command{
		Use:   "create IMAGE",
		Short: "Make the index of an image's gzip layers",
		Long: `Make the index of an image's gzip layers.

Layers that have an index in the store are not read again, so that a run after an
interruption makes only what is missing. The exit status is 0 where every layer has an
index then; 2 where some have none, which are named; 1 where none has one, or the
registry fails: then nothing is pushed.`,
		Example: `  lacunactl index create --push registry.example/app:1
  lacunactl index create --containerd /run/containerd/containerd.sock docker.io/library/python:3.13
  lacunactl index create --oci-layout ./app.tar registry.example/app:1`,
		Args: cobra.ExactArgs(1),
		RunE: x.each(func(e *indexer, cmd *cobra.Command) (result, error) {
			r, err := e.create(cmd, force)
			if !push || err != nil && !errors.Is(err, errPartial) {
				return r, err
			}
			pushed, pushErr := e.push(cmd)
			r.Pushed = pushed
			if pushErr != nil {
				return r, pushErr
			}
			return r, err
		}),
	}
	x.imageFlags(cmd)
	cmd.Flags().BoolVar(&push, "push", false, "also push it to the image's repository")
	cmd.Flags().BoolVar(&force, "force", false, "make indexes again that exist already")
	return cmd
}

func buildOptions(c *config.Config) spans.BuildOptions {
	return spans.BuildOptions{SpanSize: int64(c.Index.SpanSize), Spacing: int64(c.Index.Spacing), Grain: int64(c.Index.Grain)}
}

func (e *indexer) create(cmd *cobra.Command, force bool) (result, error) {
	began := time.Now()
	outcomes, err := index.CreateImage(cmd.Context(), e.image, e.store, index.CreateOptions{
		Build: buildOptions(e.config), Force: force,
		Watch: func(l index.ImageLayer, r io.Reader) io.Reader {
			return io.TeeReader(r, newBar(cmd, l.Size, "index "+l.Digest.Encoded()[:12]))
		},
	})
	if err != nil {
		return result{}, err
	}
	r := e.report(outcomes, "made in "+time.Since(began).Round(time.Millisecond).String())
	return r, partial(outcomes)
}

// partial is errPartial where a layer has no index.
func partial(outcomes []index.Outcome) error {
	n := 0
	for _, o := range outcomes {
		if o.Err != nil {
			n++
		}
	}
	if n == 0 {
		return nil
	}
	return fmt.Errorf("%w: %d of %d", errPartial, n, len(outcomes))
}

// newBar is a progress bar on a terminal, and silent elsewhere.
func newBar(cmd *cobra.Command, n int64, what string) *progressbar.ProgressBar {
	if f, ok := cmd.ErrOrStderr().(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		return progressbar.DefaultBytes(n, what)
	}
	return progressbar.DefaultBytesSilent(n, what)
}

func (e *indexer) push(cmd *cobra.Command) (*index.Pushed, error) {
	total := int64(0)
	for _, l := range e.image.Layers {
		if h, err := e.store.Head(l.Digest); err == nil {
			total += h.IndexSize()
		}
	}
	bar := newBar(cmd, total, "push")
	return index.Push(cmd.Context(), e.client, e.image, e.store, func(n int64) { _ = bar.Add64(n) })
}

// pushOnly pushes the indexes that the store has.
func (e *indexer) pushOnly(cmd *cobra.Command) (result, error) {
	pushed, err := e.push(cmd)
	if err != nil {
		return result{}, err
	}
	var outcomes []index.Outcome
	for _, l := range e.image.Layers {
		o := index.Outcome{Layer: l}
		for _, m := range pushed.Missing {
			if m.Layer.Digest == l.Digest {
				o = m
			}
		}
		outcomes = append(outcomes, o)
	}
	r := e.report(outcomes, "made before")
	r.Pushed = pushed
	return r, partial(outcomes)
}
