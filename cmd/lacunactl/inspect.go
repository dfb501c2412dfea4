package main

import (
	"errors"
	"fmt"
	"io"
	"text/tabwriter"

	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	"github.com/spf13/cobra"

	"github.com/lacuna-snapshotter/lacuna/fetcher/index"
)

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
	return row{l.Digest, l.Size, h.IndexSize(), h.Size, len(h.Map.Checkpoints), h.Map.Spans(), h.Map.BlobSize, ""}
}

func (e *indexer) result(note string) result {
	return result{Image: e.ref, Platform: platforms.FormatAll(e.image.Platform), Layers: []row{}, Note: note}
}

// report lists what the store has of an image's layers.
func (e *indexer) report(outcomes []index.Outcome, note string) result {
	r := e.result(note)
	for _, o := range outcomes {
		h, err := e.store.Head(o.Layer.Digest)
		if err = errors.Join(o.Err, err); o.Err != nil {
			err = o.Err
		}
		if err != nil {
			r.Layers = append(r.Layers, row{Layer: o.Layer.Digest, Size: o.Layer.Size, Note: err.Error()})
			continue
		}
		r.Layers = append(r.Layers, rowOf(o.Layer, h))
	}
	return r
}

// inspect lists the index in the registry or, where it has none, that in the store.
func (e *indexer) inspect(cmd *cobra.Command) (result, error) {
	r := e.result("in " + e.image.Repo.Name())
	found := false
	for _, l := range e.image.Layers {
		h, err := e.resolver.Published(cmd.Context(), e.want(l))
		switch {
		case err == nil:
			found = true
			r.Layers = append(r.Layers, rowOf(l, h))
		case errors.Is(err, index.ErrNone):
			r.Layers = append(r.Layers, row{Layer: l.Digest, Size: l.Size, Note: "no index"})
		default:
			return result{}, err
		}
	}
	if !found {
		return e.inspectStore()
	}
	return r, nil
}

func (e *indexer) inspectStore() (result, error) {
	var outcomes []index.Outcome
	there := false
	for _, l := range e.image.Layers {
		outcomes = append(outcomes, index.Outcome{Layer: l})
		_, err := e.store.Head(l.Digest)
		there = there || err == nil
	}
	if !there {
		return result{}, fmt.Errorf("image %s: %w in %s or in the store: lacunactl index create makes one", e.ref, index.ErrNone, e.image.Repo.Name())
	}
	return e.report(outcomes, "in the store; the registry has none"), nil
}

// print is for people.
func (e *indexer) print(out io.Writer, r result) error {
	if e.many {
		fmt.Fprintf(out, "%s\n", r.Platform)
	}
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "LAYER\tSIZE\tINDEX\tBEFORE MOUNT\tCHECKPOINTS\tSPANS\tFILES")
	var size, total int64
	for _, r := range r.Layers {
		if r.Index == 0 {
			fmt.Fprintf(w, "%s\t%s\t%s\n", r.Layer.Encoded()[:12], byteCount(r.Size), r.Note)
			continue
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%d\t%d\t%s\n", r.Layer.Encoded()[:12], byteCount(r.Size), byteCount(r.Index), byteCount(r.Head), r.Checkpoints, r.Spans, byteCount(r.Files))
		size, total = size+r.Size, total+r.Index
	}
	if err := w.Flush(); err != nil {
		return err
	}
	if size > 0 {
		fmt.Fprintf(out, "index: %s for %s of layers, %.2f %%; %s\n", byteCount(total), byteCount(size), 100*float64(total)/float64(size), r.Note)
	}
	if r.Pushed != nil {
		how := "the registry lists it as a referrer"
		if r.Pushed.Tagged {
			how = "by tag, since the registry has no referrers API"
		}
		fmt.Fprintf(out, "pushed %s (%s)\n", r.Pushed.Manifest.Digest, how)
	}
	return nil
}
