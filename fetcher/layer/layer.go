package layer

import (
	"context"
	"fmt"
	"io"
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
