package spans

import (
	"context"
	"fmt"
	"io"
	"sync"

	"golang.org/x/sync/semaphore"

	"github.com/lacuna-snapshotter/lacuna/fetcher/inflate"
)

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

// Memory for segments. Those of layers as they usually are take less than small;
// larger ones share what the whole process may take for them.
const (
	smallSegment  = 16 << 20
	segmentMemory = maxSegment + 2*maxSegment + packedSlack // the largest there can be
)

var (
	largeSegments = semaphore.NewWeighted(segmentMemory)
	// expanders keeps decode tables and buffers, of a few hundred KiB, for reuse.
	expanders = sync.Pool{New: func() any { return new(inflate.Expander) }}
)

// reserve checks the bounds of all segments on the way and takes the memory that the
// largest needs, before any of it is allocated. A map can come here with no more than
// its own word for what the layer has.
func (s *segments) reserve(ctx context.Context) (release func(), err error) {
	m := s.layer.Map
	walk := *s
	var most int64
	for ; !walk.done(); walk.ck++ {
		c := m.Checkpoints[walk.ck]
		to, end := walk.bounds()
		in, out := to-PackedOffset(c.Bit/8), end-c.Stream
		if in <= 0 || out <= 0 || out > maxSegment || in > maxPacked(maxSegment) || int64(out) > int64(in)*maxRatio || int64(to) > m.PackedSize {
			return nil, fmt.Errorf("%w of layer %s: %d bytes of stream from %d packed at checkpoint %d", ErrMap, m.Layer, out, in, walk.ck)
		}
		most = max(most, int64(in)+int64(out))
	}
	if most <= smallSegment {
		s.expander = expanders.Get().(*inflate.Expander)
		return func() { expanders.Put(s.expander) }, nil
	}
	if err := largeSegments.Acquire(ctx, most); err != nil {
		return nil, err
	}
	s.expander = new(inflate.Expander)
	return func() { largeSegments.Release(most) }, nil
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
	n := int64(end - c.Stream) // which reserve has bounded
	var window []byte
	if c.Window {
		window = s.window
	}
	data, err := s.expander.Expand(inflate.Piece{Data: s.packed, Skip: int(c.Bit % 8), Window: window}, int(n))
	if err != nil {
		return nil, 0, &inputError{err}
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
