package spans

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"

	"github.com/lacuna-snapshotter/lacuna/erofs"
	"github.com/lacuna-snapshotter/lacuna/fetcher/inflate"
)

// BuildOptions are the sizes that Build works with. Zero values mean the
// defaults.
type BuildOptions struct {
	SpanSize int64 // bytes of blob verified and filled together
	Spacing  int64 // least bytes of stream between checkpoints
	Grain    int64 // bytes of stream between stops
	Tar      erofs.Options
}

// The defaults. Windows are what makes an index large and compressed bytes
// before the wanted ones what makes a fetch long: see docs/benchmarks.md.
const (
	DefaultSpanSize = 64 << 10
	DefaultSpacing  = 256 << 10
	DefaultGrain    = 8 << 10
)

func (o BuildOptions) withDefaults() BuildOptions {
	if o.SpanSize == 0 {
		o.SpanSize = DefaultSpanSize
	}
	if o.Spacing == 0 {
		o.Spacing = DefaultSpacing
	}
	if o.Grain == 0 {
		o.Grain = DefaultGrain
	}
	return o
}

// Built is what Build makes of a layer.
type Built struct {
	Map       *Map
	Bootstrap []byte
	Tree      *erofs.Tree
}

// Build reads a gzip layer to its end and makes its bootstrap and map. Windows
// are handed to window as they come, with the checkpoint's number, in order, from
// a goroutine of its own; the callee owns them.
//
// Inflate runs beside the rest, so that a build takes little longer than
// inflate alone. Memory is a few buffers and what the tree needs.
func Build(ctx context.Context, packed io.Reader, opts BuildOptions, window func(checkpoint int, w []byte) error) (*Built, error) {
	opts = opts.withDefaults()
	m := &Map{SpanSize: opts.SpanSize, Grain: opts.Grain}
	var tree *erofs.Tree
	g, ctx := errgroup.WithContext(ctx)
	stream := newPipe(ctx)
	input := newPipe(ctx)
	windows := make(chan numbered, 16)
	g.Go(func() error {
		defer close(windows)
		err := inflateLayer(ctx, io.TeeReader(packed, input), opts, m, stream, windows)
		input.finish(err)
		stream.finish(err)
		return err
	})
	g.Go(func() error {
		sum := sha256.New()
		_, err := io.Copy(sum, input)
		m.Layer = digest.NewDigest(digest.SHA256, sum)
		return err
	})
	g.Go(func() error {
		for w := range windows {
			if err := window(w.checkpoint, w.window); err != nil {
				return err
			}
		}
		return nil
	})
	g.Go(func() (err error) {
		tree, err = readStream(ctx, stream, opts, m)
		return err
	})
	if err := g.Wait(); err != nil {
		return nil, err
	}
	bootstrap, err := tree.Encode()
	if err != nil {
		return nil, err
	}
	// Whoever fetches the index will check both, and refuse what does not pass.
	if err := m.Check(); err != nil {
		return nil, fmt.Errorf("built a map that is %w", err)
	}
	if err := erofs.Check(bootstrap, m.BlobSize); err != nil {
		return nil, fmt.Errorf("built an %w", err)
	}
	return &Built{Map: m, Bootstrap: bootstrap, Tree: tree}, nil
}

// numbered is a window with its checkpoint's number.
type numbered struct {
	checkpoint int
	window     []byte
}

// inflateLayer fills in what the packed layer tells.
func inflateLayer(ctx context.Context, packed io.Reader, opts BuildOptions, m *Map, stream *pipe, windows chan<- numbered) error {
	counted := &counter{r: packed}
	r := inflate.NewReader(counted, inflate.Recorder{
		Spacing: opts.Spacing,
		Grain:   opts.Grain,
		Point: func(c inflate.Point) {
			m.Checkpoints = append(m.Checkpoints, Checkpoint{Bit: c.In, Stream: StreamOffset(c.Out), Window: c.Window != nil})
			if c.Window == nil {
				return
			}
			select {
			case windows <- numbered{len(m.Checkpoints) - 1, c.Window}:
			case <-ctx.Done():
			}
		},
		Stop: func(out, in int64) {
			if n := (out + opts.Grain - 1) / opts.Grain; int64(len(m.Stops)) < n {
				m.Stops = append(m.Stops, PackedOffset(in))
			}
		},
	})
	for {
		run, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return fmt.Errorf("inflate at byte %d of the layer: %w", counted.n, err)
		}
		m.StreamSize += int64(len(run))
		if _, err := stream.Write(run); err != nil {
			return err
		}
	}
	m.PackedSize = counted.n
	return ctx.Err()
}

// readStream fills in what the tar tells. It reads to the stream's end, for the
// diff ID.
func readStream(ctx context.Context, stream *pipe, opts BuildOptions, m *Map) (*erofs.Tree, error) {
	sum := sha256.New()
	r := io.TeeReader(stream, sum)
	spans := &spanHasher{m: m, h: sha256.New(), zeros: make([]byte, opts.SpanSize)}
	opts.Tar.Data = spans.extent
	tree, err := erofs.ReadTar(ctx, r, opts.Tar)
	if err != nil {
		return nil, err
	}
	if _, err := io.Copy(io.Discard, r); err != nil {
		return nil, err
	}
	m.DiffID = digest.NewDigest(digest.SHA256, sum)
	m.BlobSize = tree.BlobSize
	spans.finish()
	return tree, nil
}

type counter struct {
	r io.Reader
	n int64
}

func (c *counter) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += int64(n)
	return n, err
}

// spanHasher makes the spans' digests from sections in blob order.
type spanHasher struct {
	m     *Map
	h     hash.Hash
	at    int64   // blob bytes hashed
	zeros []byte  // a span of them
	zero  *Digest // theirs
	buf   [64 << 10]byte
}

func (s *spanHasher) extent(e erofs.Extent, r io.Reader) error {
	s.m.Sections = append(s.m.Sections, Section{BlobOffset(e.Blob), StreamOffset(e.Stream), e.Len})
	s.pad(e.Blob)
	for left := e.Len; left > 0; {
		n, err := r.Read(s.buf[:min(left, int64(len(s.buf)))])
		s.write(s.buf[:n])
		left -= int64(n)
		if err != nil && (left > 0 || !errors.Is(err, io.EOF)) {
			if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return err
		}
	}
	return nil
}

func (s *spanHasher) write(p []byte) {
	for len(p) > 0 {
		n := min(int64(len(p)), s.m.SpanSize-s.at%s.m.SpanSize)
		s.h.Write(p[:n])
		p = p[n:]
		if s.at += n; s.at%s.m.SpanSize == 0 {
			s.cut()
		}
	}
}

// pad hashes zeros. Spans of nothing else, of which sparse files have many, are
// hashed once.
func (s *spanHasher) pad(to int64) {
	for s.at < to {
		if s.at%s.m.SpanSize == 0 && to-s.at >= s.m.SpanSize {
			if s.zero == nil {
				d := Digest(sha256.Sum256(s.zeros))
				s.zero = &d
			}
			s.m.Digests = append(s.m.Digests, *s.zero)
			s.at += s.m.SpanSize
			continue
		}
		s.write(s.zeros[:min(to-s.at, int64(len(s.zeros)))])
	}
}

func (s *spanHasher) cut() {
	s.m.Digests = append(s.m.Digests, Digest(s.h.Sum(nil)))
	s.h.Reset()
}

func (s *spanHasher) finish() {
	s.pad(s.m.BlobSize)
	if s.at%s.m.SpanSize != 0 {
		s.cut()
	}
}
