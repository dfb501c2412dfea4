package snapshot

import (
	"errors"

	"golang.org/x/sync/errgroup"

	"github.com/lacuna-snapshotter/lacuna/fetcher/index"
	"github.com/lacuna-snapshotter/lacuna/ondemand"
)

// predictedAtOnce is how many requests for predicted bytes a layer has under
// way: enough to fill a line whose round trip is longer than a request, few
// enough that a reader's own request is not held up behind them.
const predictedAtOnce = 3

// fillPredicted fills, from the moment a layer is mounted, what the start of its
// image is expected to read. The container is made meanwhile.
func (l *Layers) fillPredicted(layer *Layer, t Target) {
	defer l.work.Done()
	runs, err := l.indexes.prediction(l.ctx, t)
	if err != nil && !errors.Is(err, index.ErrNone) {
		l.Log.Warn("no prediction for an image", "image", t.Ref, "error", err)
	}
	var g errgroup.Group
	g.SetLimit(predictedAtOnce)
	size := layer.state.SpanSize
	for _, r := range runs {
		if l.ctx.Err() != nil {
			break
		}
		g.Go(func() error { return layer.blob.FillAhead(l.ctx, r.First*size, (r.Last-r.First)*size) })
	}
	if err := g.Wait(); err != nil && l.ctx.Err() == nil && !errors.Is(err, ondemand.ErrClosed) {
		l.Log.Warn("filling what the start of an image is expected to read", "layer", t.Layer, "error", err)
	}
}
