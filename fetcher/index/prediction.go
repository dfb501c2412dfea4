package index

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/lacuna-snapshotter/lacuna/fetcher/predict"
	"github.com/lacuna-snapshotter/lacuna/fetcher/spans"
)

// PredictionType is the media type of an artifact's configuration: JSON of a
// Prediction.
const PredictionType = "application/vnd.lacuna.prediction.v1+json"

const maxPrediction = 4 << 20

// Prediction is what the start of an image is expected to read, in order.
type Prediction struct {
	Layers []digest.Digest `json:"layers"`
	// Spans are runs: the layer's number above, the first span, how many.
	Spans [][3]int64 `json:"spans"`
}

// Run is a part of a prediction in one layer: spans [First, Last).
type Run struct{ First, Last int64 }

// Of returns a layer's runs in order.
func (p *Prediction) Of(layer digest.Digest) (runs []Run) {
	for _, s := range p.Spans {
		if p.Layers[s[0]] == layer {
			runs = append(runs, Run{s[1], s[1] + s[2]})
		}
	}
	return runs
}

// layers are those of a prediction that may be nil.
func (p *Prediction) layers() []digest.Digest {
	if p == nil {
		return nil
	}
	return p.Layers
}

func decodePrediction(b []byte) (*Prediction, error) {
	p := &Prediction{}
	if err := json.Unmarshal(b, p); err != nil {
		return nil, fmt.Errorf("%w prediction: %w", ErrFormat, err)
	}
	for _, d := range p.Layers {
		if err := d.Validate(); err != nil {
			return nil, fmt.Errorf("%w prediction: layer %q: %w", ErrFormat, d, err)
		}
	}
	for _, s := range p.Spans {
		if s[0] < 0 || s[0] >= int64(len(p.Layers)) || s[1] < 0 || s[1] > limit || s[2] < 1 || s[2] > limit {
			return nil, fmt.Errorf("%w prediction: run %v", ErrFormat, s)
		}
	}
	return p, nil
}

// predictStart makes the prediction of an image of which some layers are indexed. It
// reads files of the image through the indexes.
func predictStart(ctx context.Context, image *Image, indexes []*made) (*Prediction, error) {
	p := &Prediction{Layers: []digest.Digest{}}
	var bootstraps [][]byte
	var layers []*spanReader
	for _, ix := range indexes {
		p.Layers = append(p.Layers, ix.layer.Digest)
		bootstraps = append(bootstraps, ix.head.Bootstrap)
		layers = append(layers, &spanReader{ctx: ctx, cache: map[int64][]byte{}, layer: spans.Layer{
			Map: ix.head.Map, Remote: image.From.Content(ix.layer.Descriptor), Windows: NewWindows(ix.head, ix.file, nil),
		}})
	}
	tree, err := predict.NewTree(bootstraps)
	if err != nil {
		return nil, err
	}
	open := func(f predict.File) io.ReaderAt { return &fileReader{f, layers[f.Layer]} }
	order := newOrder(len(layers))
	for _, r := range predict.Start(tree, open, image.Command, predict.DefaultLimit) {
		order.add(r, layers[r.File.Layer].layer.Map.SpanSize)
	}
	maps := make([]*spans.Map, len(layers))
	for i, l := range layers {
		maps[i] = l.layer.Map
	}
	p.Spans = order.runs(maps)
	return p, ctx.Err()
}

// order ranks each layer's spans by first use.
type order struct {
	rank [][]ranked
	seen []map[int64]bool
	next int
}

type ranked struct {
	span int64
	rank int
}

func newOrder(layers int) *order {
	o := &order{rank: make([][]ranked, layers), seen: make([]map[int64]bool, layers)}
	for i := range o.seen {
		o.seen[i] = map[int64]bool{}
	}
	return o
}

// add ranks the spans of a file's part behind those that are there.
func (o *order) add(r predict.Range, spanSize int64) {
	layer := r.File.Layer
	for off := r.Off; off < r.Off+r.Len; {
		at, n := blobOffset(r.File, off)
		n = min(n, r.Off+r.Len-off)
		off += n
		if at < 0 {
			continue
		}
		for span := at / spanSize; span <= (at+n-1)/spanSize; span++ {
			if !o.seen[layer][span] {
				o.seen[layer][span] = true
				o.rank[layer] = append(o.rank[layer], ranked{span, o.next})
				o.next++
			}
		}
	}
}

const (
	// maxRun is the most spans in a run: one request, while which readers that
	// want later bytes of it wait.
	maxRun = 64
	// extraRequest is what another request may cost in bytes to be avoided.
	extraRequest = 1 << 10
)

// runs joins spans into runs where one request for both costs no more bytes than
// two, since each passes what lies between its checkpoint and its first span.
// They are ordered by the first use of any of their spans.
func (o *order) runs(maps []*spans.Map) [][3]int64 {
	type run struct {
		layer, first, last int64
		rank               int
	}
	var list []run
	for layer, spans := range o.rank {
		m := maps[layer]
		slices.SortFunc(spans, func(a, b ranked) int { return cmp.Compare(a.span, b.span) })
		for i, s := range spans {
			r := run{int64(layer), s.span, s.span + 1, s.rank}
			if i > 0 {
				last := &list[len(list)-1]
				if r.last-last.first <= maxRun &&
					m.Fetched(last.first, r.last) <= m.Fetched(last.first, last.last)+m.Fetched(r.first, r.last)+extraRequest {
					last.last, last.rank = r.last, min(last.rank, r.rank)
					continue
				}
			}
			list = append(list, r)
		}
	}
	slices.SortStableFunc(list, func(a, b run) int { return cmp.Compare(a.rank, b.rank) })
	spans := make([][3]int64, len(list))
	for i, r := range list {
		spans[i] = [3]int64{r.layer, r.first, r.last - r.first}
	}
	return spans
}

// blobOffset is where a file's byte lies in the blob, -1 in a hole, and how many
// bytes of the file follow there.
func blobOffset(f predict.File, off int64) (at, n int64) {
	i := off / f.ChunkSize
	n = min(f.Size, (i+1)*f.ChunkSize) - off
	if addr := f.Chunks[i]; addr != 1<<32-1 {
		return int64(addr)*4096 + off%f.ChunkSize, n
	}
	return -1, n
}

// fileReader reads a file of an indexed layer.
type fileReader struct {
	f     predict.File
	layer *spanReader
}

// ReadAt implements io.ReaderAt.
func (r *fileReader) ReadAt(p []byte, off int64) (n int, err error) {
	for n < len(p) {
		if off >= r.f.Size {
			return n, io.EOF
		}
		at, run := blobOffset(r.f, off)
		part := p[n:min(int64(len(p)), int64(n)+run)]
		if at < 0 {
			clear(part)
		} else if err := r.layer.read(part, at); err != nil {
			return n, err
		}
		n += len(part)
		off += int64(len(part))
	}
	return n, nil
}

// spanReader reads a layer's blob and keeps what it has fetched, up to a bound.
type spanReader struct {
	ctx   context.Context // of predictStart's call
	layer spans.Layer
	cache map[int64][]byte
}

const maxCachedSpans = 256

func (r *spanReader) read(p []byte, at int64) error {
	size := r.layer.Map.SpanSize
	for len(p) > 0 {
		span := at / size
		data := r.cache[span]
		if data == nil {
			if len(r.cache) >= maxCachedSpans {
				clear(r.cache)
			}
			last := min((at+int64(len(p))-1)/size+1, span+32)
			first, last := r.layer.Widen(span, last, true)
			err := r.layer.Fetch(r.ctx, first, last, func(i int64, b []byte) error {
				r.cache[i] = append([]byte(nil), b...)
				return nil
			})
			if err != nil {
				return err
			}
			data = r.cache[span]
		}
		n := copy(p, data[at%size:])
		if n == 0 {
			return io.ErrUnexpectedEOF
		}
		p, at = p[n:], at+int64(n)
	}
	return nil
}

const predictionSuffix = ".prediction"

// predictionPath is where an image's prediction is kept.
func (s *Store) predictionPath(image digest.Digest) string {
	return filepath.Join(s.dir, image.Algorithm().String()+"-"+image.Encoded()+predictionSuffix)
}

// PutPrediction keeps an image's prediction.
func (s *Store) PutPrediction(image digest.Digest, p *Prediction) error {
	b, err := json.Marshal(p)
	if err != nil {
		return err
	}
	return replace(s.predictionPath(image), b)
}

// Prediction returns an image's prediction, or nil where there is none.
func (s *Store) Prediction(image digest.Digest) (*Prediction, error) {
	b, err := os.ReadFile(s.predictionPath(image))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return decodePrediction(b)
}

// runsOf are a layer's runs in all predictions here: images that share a layer share
// its index, so that it has the checkpoints that each of their starts wants.
func (s *Store) runsOf(layer digest.Digest) (runs []Run, err error) {
	images, err := s.list(predictionSuffix)
	for _, image := range images {
		p, err := s.Prediction(image)
		if errors.Is(err, ErrFormat) || p == nil && err == nil {
			continue // damaged, or removed meanwhile
		}
		if err != nil {
			return nil, err
		}
		runs = append(runs, p.Of(layer)...)
	}
	return runs, err
}

// commandOf is what an image runs.
func commandOf(c v1.ImageConfig) predict.Command {
	return predict.Command{
		Args: append(append([]string(nil), c.Entrypoint...), c.Cmd...),
		Env:  c.Env, Dir: c.WorkingDir,
	}
}
