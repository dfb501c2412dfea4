package fetcher

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/lacuna-snapshotter/lacuna/fetcher/inflate"
)

// Remote is the packed layer. Open's reader gives exactly n bytes from off or
// an error; it is closed by the caller and lives no longer than ctx.
type Remote interface {
	Open(ctx context.Context, off, n int64) io.ReadCloser
}

// Windows gives the window of a checkpoint by its number in the map:
// inflate.WindowSize bytes, which the caller does not change.
type Windows interface {
	Window(ctx context.Context, checkpoint int) ([]byte, error)
}

// DigestError says that a span's bytes are not those that the index promises.
type DigestError struct {
	Layer     string
	Span      int64
	From, To  BlobOffset
	Got, Want Digest
}

func (e *DigestError) Error() string {
	return fmt.Sprintf("layer %s: blob bytes [%d,%d) have digest %x, the index says %x: the layer or its index is damaged (make the index again with lacunactl index create)",
		e.Layer, e.From, e.To, e.Got[:6], e.Want[:6])
}

// Layer is random access to a gzip layer with an index.
type Layer struct {
	Map     *Map
	Remote  Remote
	Windows Windows
}

// Grow widens a range of spans to the checkpoints around it. What lies between
// the one before and the range, a fetch passes anyway. What lies between the
// range and the one behind it, with the span that reaches over that one, is
// added where missed is set: it costs bytes now, and fewer than later, since to
// get it by itself would mean to pass all before it again.
func (l *Layer) Grow(first, last int64, missed bool) (int64, int64) {
	m := l.Map
	from, _ := m.span(first)
	_, to := m.span(last - 1)
	start, end, ok := m.streamRange(from, to)
	if !ok {
		return first, last
	}
	at := m.Checkpoints[m.checkpointBefore(start)].Stream
	for first > 0 {
		lo, hi := m.span(first - 1)
		s, _, ok := m.streamRange(lo, hi)
		if !ok || s < at {
			break
		}
		first--
	}
	if !missed {
		return first, last
	}
	behind := StreamOffset(m.StreamSize)
	if next := m.checkpointBefore(end-1) + 1; next < len(m.Checkpoints) {
		behind = m.Checkpoints[next].Stream
	}
	for last < m.Spans() {
		lo, hi := m.span(last)
		s, _, ok := m.streamRange(lo, hi)
		if !ok || s >= behind {
			break
		}
		last++
	}
	return first, last
}

// Fetch brings the spans [first, last) in one request and passes each to put,
// verified, in order. The slice given to put is reused. It stops at the first
// error; what was put before it is good.
func (l *Layer) Fetch(ctx context.Context, first, last int64, put func(span int64, data []byte) error) error {
	m := l.Map
	out := &assembler{m: m, next: first, last: last, put: put, buf: make([]byte, m.SpanSize)}
	from, _ := m.span(first)
	_, to := m.span(last - 1)
	start, end, ok := m.streamRange(from, to)
	if !ok {
		return out.finishAll()
	}
	ck := m.checkpointBefore(start)
	packed := PackedOffset(m.Checkpoints[ck].Bit / 8)
	stop := m.stopFor(end)
	if stop <= packed {
		return fmt.Errorf("%w of layer %s: stop %d before checkpoint %d", ErrMap, m.Layer, stop, packed)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	body := l.Remote.Open(ctx, int64(packed), int64(stop-packed))
	defer body.Close()
	s := &segments{layer: l, ck: ck, body: body, at: packed, stop: stop, end: end, expander: expanders.Get().(*inflate.Expander)}
	defer expanders.Put(s.expander)
	if m.Checkpoints[ck].Window {
		// The window is another request: both go out together.
		g, gctx := errgroup.WithContext(ctx)
		g.Go(func() (err error) {
			s.window, err = l.Windows.Window(gctx, ck)
			return err
		})
		g.Go(s.readAhead)
		if err := g.Wait(); err != nil {
			return err
		}
	}
	for !s.done() {
		data, at, err := s.next()
		if err != nil {
			return fmt.Errorf("layer %s at stream offset %d: %w", m.Layer, m.Checkpoints[s.ck].Stream, err)
		}
		if err := out.stream(at, data); err != nil {
			return err
		}
	}
	return out.finishAll()
}

// segments inflates from checkpoint to checkpoint while the body arrives. The
// window of all but the first is the end of the output before.
type segments struct {
	layer  *Layer
	ck     int
	window []byte
	body   io.Reader
	at     PackedOffset // offset of the next byte of body
	stop   PackedOffset
	end    StreamOffset // where the wanted output ends

	packed   []byte // input from the checkpoint's byte on
	expander *inflate.Expander
}

// expanders keeps decode tables and buffers, of a few hundred KiB, for reuse.
var expanders = sync.Pool{New: func() any { return new(inflate.Expander) }}

func (s *segments) done() bool {
	m := s.layer.Map
	return s.ck == len(m.Checkpoints) || m.Checkpoints[s.ck].Stream >= s.end
}

// bounds is how far the segment reaches in the packed layer and the stream.
func (s *segments) bounds() (PackedOffset, StreamOffset) {
	m := s.layer.Map
	if s.ck+1 < len(m.Checkpoints) && m.Checkpoints[s.ck+1].Stream < s.end {
		next := m.Checkpoints[s.ck+1]
		return min(s.stop, PackedOffset(next.Bit/8)+1), next.Stream
	}
	return s.stop, s.end
}

// readAhead brings the input of the segment.
func (s *segments) readAhead() error {
	to, _ := s.bounds()
	n := int(to - s.at)
	if n <= 0 {
		return nil
	}
	have := len(s.packed)
	if cap(s.packed)-have < n+inflate.PieceMargin {
		grown := make([]byte, have, have+n+inflate.PieceMargin)
		copy(grown, s.packed)
		s.packed = grown
	}
	s.packed = s.packed[:have+n]
	if _, err := io.ReadFull(s.body, s.packed[have:]); err != nil {
		return err
	}
	s.at = to
	return nil
}

// next returns the segment's output and where in the stream it lies.
func (s *segments) next() ([]byte, StreamOffset, error) {
	if err := s.readAhead(); err != nil {
		return nil, 0, err
	}
	m := s.layer.Map
	c := m.Checkpoints[s.ck]
	to, end := s.bounds()
	n := int64(end - c.Stream)
	// Deflate makes at most 1032 bytes of one (zlib's technical notes): a map
	// that promises more lies, and would have us allocate it.
	if n > int64(len(s.packed)+1)*1032 {
		return nil, 0, fmt.Errorf("%w: %d bytes from %d", ErrMap, n, len(s.packed))
	}
	var window []byte
	if c.Window {
		window = s.window
	}
	data, err := s.expander.Expand(inflate.Piece{Data: s.packed, Skip: int(c.Bit % 8), Window: window}, int(n))
	if err != nil {
		return nil, 0, err
	}
	s.ck++
	if !s.done() {
		s.window = nextWindow(window, data)
		// The next segment begins in the last byte of this one's input.
		rest := to - PackedOffset(m.Checkpoints[s.ck].Bit/8)
		if rest <= 0 || int(rest) > len(s.packed) {
			return nil, 0, fmt.Errorf("%w: stop %d before checkpoint %d", ErrMap, s.stop, s.ck)
		}
		s.packed = append(s.packed[:0], s.packed[len(s.packed)-int(rest):]...)
	}
	return data, c.Stream, nil
}

// nextWindow is the last inflate.WindowSize bytes of old and data together.
func nextWindow(old, data []byte) []byte {
	w := make([]byte, inflate.WindowSize)
	n := copy(w[max(0, len(w)-len(data)):], data[max(0, len(data)-len(w)):])
	if n < len(w) && len(old) == len(w) {
		copy(w[:len(w)-n], old[n:])
	}
	return w
}

// assembler lays stream bytes out as the blob has them and verifies spans.
type assembler struct {
	m      *Map
	next   int64 // span in buf
	last   int64
	put    func(int64, []byte) error
	buf    []byte
	extent int // first extent that may have bytes to come
	ready  bool
}

// stream takes bytes of the stream that start at off. Calls are in order.
func (a *assembler) stream(off StreamOffset, data []byte) error {
	end := off + StreamOffset(len(data))
	if !a.ready {
		from, _ := a.m.span(a.next)
		a.extent, a.ready = a.m.extentAt(from), true
	}
	for a.next < a.last && a.extent < len(a.m.Extents) {
		e := a.m.Extents[a.extent]
		lo, hi := a.m.span(a.next)
		if e.Blob >= hi {
			if err := a.finish(); err != nil {
				return err
			}
			continue
		}
		// The part of the extent in this span, in the stream's terms.
		from := e.Stream + StreamOffset(max(0, lo-e.Blob))
		to := e.Stream + StreamOffset(min(e.Len, int64(hi-e.Blob)))
		if from >= end {
			return nil
		}
		if to > off {
			src := data[max(0, from-off):min(int64(to-off), int64(len(data)))]
			at := e.Blob + BlobOffset(max(from, off)-e.Stream) - lo
			copy(a.buf[at:], src)
		}
		if to > end {
			return nil
		}
		if to == e.Stream+StreamOffset(e.Len) {
			a.extent++
		} else if err := a.finish(); err != nil {
			return err
		}
	}
	return nil
}

// finishAll finishes the spans that no more bytes belong to.
func (a *assembler) finishAll() error {
	for a.next < a.last {
		if err := a.finish(); err != nil {
			return err
		}
	}
	return nil
}

// finish verifies the span in buf and hands it on.
func (a *assembler) finish() error {
	from, to := a.m.span(a.next)
	data := a.buf[:to-from]
	if got := Digest(sha256.Sum256(data)); got != a.m.Digests[a.next] {
		return &DigestError{Layer: a.m.Layer.String(), Span: a.next, From: from, To: to, Got: got, Want: a.m.Digests[a.next]}
	}
	if err := a.put(a.next, data); err != nil {
		return err
	}
	clear(a.buf)
	a.next++
	return nil
}
