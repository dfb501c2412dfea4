package spans

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"sort"

	"github.com/opencontainers/go-digest"
)

// BlobOffset is an offset in the virtual blob, in bytes.
type BlobOffset int64

// StreamOffset is an offset in the layer's tar, in bytes.
type StreamOffset int64

// PackedOffset is an offset in the layer as the registry has it, in bytes.
type PackedOffset int64

// Section is a run of bytes that lie together in the blob and in the stream.
// Blob bytes in no section are zero.
type Section struct {
	Blob   BlobOffset
	Stream StreamOffset
	Len    int64
}

// Checkpoint is a place where inflate can start.
type Checkpoint struct {
	Bit    int64 // offset in the packed layer, in bits
	Stream StreamOffset
	Window bool // whether it needs a window; at a gzip member's start it does not
}

// Digest is the SHA-256 of a span.
type Digest [sha256.Size]byte

// Map leads from a layer's blob to its bytes in the registry.
type Map struct {
	Layer  digest.Digest // of the packed layer
	DiffID digest.Digest // of the stream

	PackedSize int64
	StreamSize int64
	BlobSize   int64

	SpanSize int64 // bytes of blob in a span, a multiple of 4096
	Grain    int64 // bytes of stream between stops

	Sections    []Section      // ascending in both spaces, not overlapping
	Checkpoints []Checkpoint   // ascending; the first is at stream offset 0
	Stops       []PackedOffset // Stops[i] is enough input for Grain*(i+1) bytes of stream, or for all
	Digests     []Digest       // of each span; the last may be short
}

// ErrMap is matched by errors about a map that cannot be right.
var ErrMap = errors.New("invalid layer map")

// Limits for the fields of a map, far above what real layers need.
const (
	maxSize     = 1 << 43 // erofs.DefaultLimits.BlobSize
	minSpanSize = 4096
	maxSpanSize = 4 << 20
	minGrain    = 4096
	maxGrain    = 4 << 20

	// maxSegment is the most stream between two checkpoints, which is inflated at
	// once. Spacings go up to 64 MiB, thinning keeps them below one and a half, and
	// zlib's blocks, at whose starts checkpoints lie, hold at most 8 MiB.
	maxSegment = 128 << 20
	// Deflate makes at most 1032 bytes of one (zlib's technical notes).
	maxRatio = 1032
	// Stored blocks add 5 bytes to 65535, empty ones and gzip headers a little more
	// for each of a segment's members.
	packedSlack = 1 << 20
)

// maxPacked is the most packed bytes that n bytes of stream can take.
func maxPacked(n StreamOffset) PackedOffset { return 2*PackedOffset(n) + packedSlack }

// Check verifies all that can be known without the layer: sizes, order,
// bounds. A map that passes can still lie, which the spans' digests tell.
func (m *Map) Check() error {
	bad := func(format string, args ...any) error {
		return fmt.Errorf("%w: %s", ErrMap, fmt.Sprintf(format, args...))
	}
	for _, d := range []digest.Digest{m.Layer, m.DiffID} {
		if d.Validate() != nil || d.Algorithm() != digest.SHA256 {
			return bad("digest %q", d)
		}
	}
	n, err := m.Counts()
	if err != nil {
		return err
	}
	switch {
	case int64(len(m.Digests)) != n.Digests:
		return bad("%d digests for %d spans", len(m.Digests), n.Digests)
	case int64(len(m.Stops)) != n.Stops:
		return bad("%d stops", len(m.Stops))
	case int64(len(m.Checkpoints)) > n.Checkpoints:
		return bad("%d checkpoints", len(m.Checkpoints))
	case m.StreamSize > 0 && (len(m.Checkpoints) == 0 || m.Checkpoints[0].Stream != 0 || m.Checkpoints[0].Window):
		return bad("no checkpoint at the start")
	}
	var blob BlobOffset
	var stream StreamOffset
	for i, e := range m.Sections {
		if e.Blob < blob || e.Stream < stream || e.Len <= 0 ||
			e.Len > m.BlobSize-int64(e.Blob) || e.Len > m.StreamSize-int64(e.Stream) {
			return bad("section %d: %+v", i, e)
		}
		blob, stream = e.Blob+BlobOffset(e.Len), e.Stream+StreamOffset(e.Len)
	}
	var at Checkpoint
	for i, c := range m.Checkpoints {
		if i > 0 && (c.Stream <= at.Stream || c.Bit <= at.Bit) || c.Bit < 0 || c.Bit/8 >= m.PackedSize || int64(c.Stream) > m.StreamSize {
			return bad("checkpoint %d: %+v", i, c)
		}
		at = c
	}
	var stop PackedOffset
	for i, s := range m.Stops {
		if s < stop || int64(s) > m.PackedSize {
			return bad("stop %d at %d", i, s)
		}
		stop = s
	}
	return m.checkSegments()
}

// Counts is how many items a map's tables have.
type Counts struct {
	Stops, Digests        int64 // exactly
	Checkpoints, Sections int64 // at most
}

// minSpacing is the least stream between two checkpoints, on average: far below
// inflate.MinSpacing, which our own have.
const minSpacing = 4096

// Counts checks the sizes and tells which tables are plausible for them. It is for
// decoders, which have the sizes before they make room for the tables.
func (m *Map) Counts() (Counts, error) {
	bad := func(format string, args ...any) (Counts, error) {
		return Counts{}, fmt.Errorf("%w: %s", ErrMap, fmt.Sprintf(format, args...))
	}
	for _, n := range []int64{m.PackedSize, m.StreamSize, m.BlobSize} {
		if n < 0 || n > maxSize {
			return bad("size %d", n)
		}
	}
	switch {
	case m.StreamSize > m.PackedSize*maxRatio:
		return bad("%d bytes of stream from %d packed", m.StreamSize, m.PackedSize)
	case m.BlobSize%4096 != 0:
		return bad("blob of %d bytes", m.BlobSize)
	case m.SpanSize < minSpanSize || m.SpanSize > maxSpanSize || m.SpanSize%4096 != 0:
		return bad("spans of %d bytes", m.SpanSize)
	case m.Grain < minGrain || m.Grain > maxGrain:
		return bad("stops every %d bytes", m.Grain)
	}
	return Counts{
		Stops: (m.StreamSize + m.Grain - 1) / m.Grain, Digests: m.Spans(),
		Checkpoints: m.StreamSize/minSpacing + 1, Sections: m.StreamSize,
	}, nil
}

// checkSegments verifies what lies between checkpoints: both sides of a segment are
// held in memory, so neither may be longer than the other allows.
func (m *Map) checkSegments() error {
	for i, c := range m.Checkpoints {
		packed, stream := PackedOffset(c.Bit/8), StreamOffset(m.StreamSize)
		var end PackedOffset // of the segment's input
		if i+1 < len(m.Checkpoints) {
			stream = m.Checkpoints[i+1].Stream
			end = PackedOffset(m.Checkpoints[i+1].Bit/8) + 1
		} else if n := len(m.Stops); n > 0 {
			end = m.Stops[n-1]
		}
		out, in := stream-c.Stream, end-packed
		if out > maxSegment || in > maxPacked(out) || out > 0 && (in <= 0 || int64(out) > int64(in)*maxRatio) {
			return fmt.Errorf("%w: %d bytes of stream from %d packed at checkpoint %d", ErrMap, out, in, i)
		}
	}
	return nil
}

// Spans is the number of spans in the blob.
func (m *Map) Spans() int64 { return (m.BlobSize + m.SpanSize - 1) / m.SpanSize }

// span is the blob range of a span.
func (m *Map) span(i int64) (from, to BlobOffset) {
	return BlobOffset(i * m.SpanSize), BlobOffset(min((i+1)*m.SpanSize, m.BlobSize))
}

// sectionAt is the index of the first section that ends after off.
func (m *Map) sectionAt(off BlobOffset) int {
	return sort.Search(len(m.Sections), func(i int) bool {
		return m.Sections[i].Blob+BlobOffset(m.Sections[i].Len) > off
	})
}

// File is the range of spans that the file at a span's end lies in. A small file
// shares its spans with others.
func (m *Map) File(span int64) (first, last int64) {
	_, to := m.span(span)
	i := m.sectionAt(to - 1)
	if i == len(m.Sections) {
		return span, span + 1
	}
	e := m.Sections[i]
	return min(span, int64(e.Blob)/m.SpanSize), max(span+1, (int64(e.Blob)+e.Len-1)/m.SpanSize+1)
}

// streamRange is the part of the stream that the blob range needs; ok is false
// where it needs none.
func (m *Map) streamRange(from, to BlobOffset) (first, end StreamOffset, ok bool) {
	i, j := m.sectionAt(from), m.sectionAt(to)
	if i == len(m.Sections) || m.Sections[i].Blob >= to {
		return 0, 0, false
	}
	e := m.Sections[i]
	first = e.Stream + StreamOffset(max(0, from-e.Blob))
	if j < len(m.Sections) && m.Sections[j].Blob < to {
		return first, m.Sections[j].Stream + StreamOffset(to-m.Sections[j].Blob), true
	}
	e = m.Sections[j-1]
	return first, e.Stream + StreamOffset(e.Len), true
}

// checkpointBefore is the index of the last checkpoint at or before off.
func (m *Map) checkpointBefore(off StreamOffset) int {
	return sort.Search(len(m.Checkpoints), func(i int) bool { return m.Checkpoints[i].Stream > off }) - 1
}

// stopFor is how many packed bytes are enough for the stream before off: up to its
// stop, and never past the checkpoint behind it.
func (m *Map) stopFor(off StreamOffset) PackedOffset {
	i := (int64(off) + m.Grain - 1) / m.Grain
	if i == 0 {
		return 0
	}
	stop := m.Stops[min(i, int64(len(m.Stops)))-1]
	if next := m.checkpointBefore(off-1) + 1; next < len(m.Checkpoints) {
		stop = min(stop, PackedOffset(m.Checkpoints[next].Bit/8)+1)
	}
	return stop
}

// CheckpointOf is the number of the checkpoint that a fetch of a span starts
// from; ok is false for a span of zeros.
func (m *Map) CheckpointOf(span int64) (checkpoint int, ok bool) {
	from, to := m.span(span)
	start, _, ok := m.streamRange(from, to)
	if !ok {
		return 0, false
	}
	return m.checkpointBefore(start), true
}

// Fetched is how many bytes a fetch of the spans [first, last) asks the
// registry for.
func (m *Map) Fetched(first, last int64) int64 {
	from, _ := m.span(first)
	_, to := m.span(last - 1)
	s, e, ok := m.streamRange(from, to)
	if !ok {
		return 0
	}
	return int64(m.stopFor(e)) - m.Checkpoints[m.checkpointBefore(s)].Bit/8
}
