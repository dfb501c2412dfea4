package layer

import (
	"errors"
	"sync"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"

	"github.com/lacuna-snapshotter/lacuna/fetcher/index"
	"github.com/lacuna-snapshotter/lacuna/ondemand"
)

// predictedAtOnce is how many requests for predicted bytes a layer has under way:
// enough to keep a connection busy whose round trip is longer than a request, few
// enough that a reader's own request does not wait behind them.
const predictedAtOnce = 3

// predictions are the ones that are being filled: one at a time for an image and a
// layer's blob, however often containerd prepares the layer.
type predictions struct {
	mu      sync.Mutex
	running map[predicted]bool
}

type predicted struct {
	blob  *ondemand.Blob
	image digest.Digest // of its manifest
}

// begin reports whether a prediction is not being filled yet; then the caller fills
// it, and calls end.
func (p *predictions) begin(k predicted) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.running[k] {
		return false
	}
	if p.running == nil {
		p.running = map[predicted]bool{}
	}
	p.running[k] = true
	return true
}

func (p *predictions) end(k predicted) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.running, k)
}

// fillPredicted fills in the background, from the moment a layer is mounted or
// another image uses it too, what the start of an image is expected to read, while
// containerd prepares the container. The caller has the lifecycle lock.
func (l *Set) fillPredicted(layer *Layer, t Target) {
	on, f := layer.serving, layer.files
	if on.blob.Complete() {
		return
	}
	l.start(func() { l.fillRuns(on.blob, f, t) })
}

// predictRestored does the same for the layers of an earlier run, one by one.
func (l *Set) predictRestored() {
	for _, d := range l.all() {
		view, _ := l.view(d)
		if l.ctx.Err() == nil && view.state == Ready && !view.serving.blob.Complete() {
			l.fillRuns(view.serving.blob, view.files, view.files.image())
		}
	}
}

func (l *Set) fillRuns(blob *ondemand.Blob, f *files, t Target) {
	k := predicted{blob, t.Manifest}
	if !l.predictions.begin(k) {
		return
	}
	defer l.predictions.end(k)
	runs, err := l.resolver.Prediction(l.ctx, index.Want(t))
	if err != nil && !errors.Is(err, index.ErrNone) && l.ctx.Err() == nil {
		l.Log.Warn("the prediction of an image could not be read", "image", t.Ref, "error", err)
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
		l.Log.Warn("filling the predicted bytes of an image failed", "layer", f.Layer, "image", t.Ref, "error", err)
	}
}
