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

// fillPredicted fills in the background, from the moment a layer is mounted or
// another image comes to it, what the start of an image is expected to read. The
// container is made meanwhile. The caller has the lifecycle lock.
func (l *Layers) fillPredicted(layer *Layer, t Target) {
	on, f := layer.serving, layer.files
	if on.blob.Complete() {
		return
	}
	l.start(func() { l.fillRuns(on.blob, f, t) })
}

// predictRestored does the same for the layers of an earlier run, one by one.
func (l *Layers) predictRestored() {
	for _, d := range l.all() {
		view, _ := l.snapshotOf(d)
		if l.ctx.Err() == nil && view.state == Ready && !view.serving.blob.Complete() {
			l.fillRuns(view.serving.blob, view.files, view.files.image())
		}
	}
}

func (l *Layers) fillRuns(blob *ondemand.Blob, f *files, t Target) {
	runs, err := l.resolver.Prediction(l.ctx, index.Want(t))
	if err != nil && !errors.Is(err, index.ErrNone) && l.ctx.Err() == nil {
		l.Log.Warn("no prediction for an image", "image", t.Ref, "error", err)
	}
	var g errgroup.Group
	g.SetLimit(predictedAtOnce)
	for _, r := range runs {
		if l.ctx.Err() != nil {
			break
		}
		g.Go(func() error { return blob.FillAhead(l.ctx, r.First*f.SpanSize, (r.Last-r.First)*f.SpanSize) })
	}
	if err := g.Wait(); err != nil && l.ctx.Err() == nil && !errors.Is(err, ondemand.ErrClosed) {
		l.Log.Warn("filling what the start of an image is expected to read", "layer", f.Layer, "error", err)
	}
}
