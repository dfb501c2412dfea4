package harness

import (
	"context"
	"time"
)

// Published is an image in a registry of its own, with its index, and a line before
// that registry.
type Published struct {
	*Image
	Indexed
	Registry string // its address without the line, for pushing
	Link     *Link
	Ref      string // the image's reference over the line, for pulling
}

// Indexed is what making an image's index took.
type Indexed struct {
	Out  string // of lacunactl index create
	Peak int64  // its peak resident memory, in bytes
}

// Line is the network between a node and a registry.
type Line struct {
	Rate      float64       // bits a second
	RoundTrip time.Duration // also for each new connection
}

var (
	// Slow is the line of the benchmarks and the demo.
	Slow = Line{200e6, 20 * time.Millisecond}
	// Fast is the line of the tests.
	Fast = Line{1e9, 2 * time.Millisecond}
)

// Publish starts a registry behind a line, pushes an image there and makes its index.
// Repo is the image's name in the registry, such as "/test/numpy:latest".
func (e *Env) Publish(ctx context.Context, image *Image, repo string, line Line) (*Published, error) {
	p := &Published{Image: image}
	var err error
	if p.Registry, err = e.StartRegistry(); err != nil {
		return nil, err
	}
	if p.Indexed, err = e.PushIndexed(ctx, image, p.Registry+repo); err != nil {
		return nil, err
	}
	if p.Link, err = e.StartLink(p.Registry, line); err != nil {
		return nil, err
	}
	p.Ref = p.Link.Addr + repo
	return p, e.AllowHTTP(p.Link.Addr)
}

// PushIndexed pushes an image to a plain-HTTP registry, and its index after it.
func (e *Env) PushIndexed(ctx context.Context, image *Image, ref string) (i Indexed, err error) {
	if _, err := image.Push(ctx, ref); err != nil {
		return i, err
	}
	i.Out, i.Peak, err = e.runPeak(ctx, "lacunactl", "index", "create", "--push", "--plain-http", "--store", e.Path("index"), ref)
	return i, err
}
