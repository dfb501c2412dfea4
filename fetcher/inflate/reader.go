package inflate

import (
	"errors"
	"fmt"
	"hash/crc32"
	"io"
)

const (
	inSize  = 256 << 10
	outSize = 256 << 10

	// MinSpacing is the least distance of two points. A window is known
	// only once WindowSize bytes after it are decoded.
	MinSpacing = 2 * WindowSize
)

// Point is a place in a gzip stream where decoding can start.
type Point struct {
	In  int64 // offset in the compressed stream, in bits
	Out int64 // offset in the decompressed stream, in bytes

	// Window holds the WindowSize bytes before Out with those zeroed that no
	// later data refers to. It is nil at the start of a member.
	Window []byte
}

// Recorder receives what a Reader learns on its way. Both functions are called
// from within the Reader's methods, in order of Out, and may be nil.
type Recorder struct {
	// Spacing is the least distance in output bytes between points, at
	// least MinSpacing. A point lies at the next block start after it.
	Spacing int64
	// Grain is the distance in output bytes between stops.
	Grain int64

	// Point is called once the window is known, up to WindowSize bytes of
	// output and one step after the place itself. The callee owns the window.
	Point func(Point)
	// Stop is called for each multiple of Grain with the number of compressed
	// bytes, from the start of the stream, that produce the output before it.
	// The last call has the whole stream's length.
	Stop func(out, in int64)
}

// Reader decodes a gzip stream from its start.
type Reader struct {
	m       members
	src     io.Reader
	rec     Recorder
	inBase  int64 // offset in the stream of m.in[0]
	outBase int64 // offset in the stream of m.out[0]
	given   int   // m.out[:given] is handed out
	err     error

	inMember bool
	crc      uint32
	size     uint32
	summed   int // m.out[:summed] is in crc and size

	nextPoint int64
	nextStop  int64
	pending   *Point
}

// NewReader reads gzip data from src and reports to rec.
func NewReader(src io.Reader, rec Recorder) *Reader {
	r := &Reader{src: src, rec: rec}
	r.m.in = make([]byte, inSize+inMargin+64)
	r.m.out = make([]byte, WindowSize+outSize+outSlack)
	r.m.supply = r.supply
	r.rec.Spacing = max(rec.Spacing, MinSpacing)
	r.nextStop = rec.Grain
	return r
}

// Read implements io.Reader.
func (r *Reader) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	run, err := r.next(len(p))
	return copy(p, run), err
}

// Next returns the next bytes of the stream, at least one unless there is an
// error, which is io.EOF at the end. They are valid until the next call.
func (r *Reader) Next() ([]byte, error) { return r.next(outSize) }

func (r *Reader) next(most int) ([]byte, error) {
	for r.given == r.m.o {
		if r.err != nil {
			return nil, r.err
		}
		r.err = r.step()
	}
	run := r.m.out[r.given:min(r.m.o, r.given+most)]
	r.given += len(run)
	return run, nil
}

// step decodes one run: up to the next stop, block start or end of a buffer.
func (r *Reader) step() error {
	if !r.inMember {
		return r.openMember()
	}
	if r.m.o >= WindowSize+outSize {
		r.slide()
	}
	if err := r.m.feed(); err != nil {
		return err
	}
	if r.m.state == atBlock {
		r.maybePoint()
	}
	limit := WindowSize + outSize
	if r.rec.Grain > 0 {
		limit = min(limit, int(r.nextStop-r.outBase))
	}
	if err := r.m.run(limit); err != nil {
		return err
	}
	r.reportStops()
	r.maybeFinishPoint()
	if r.m.state == atEnd {
		return r.closeMember()
	}
	return nil
}

func (r *Reader) openMember() error {
	err := r.m.header()
	if errors.Is(err, io.EOF) && r.inBase+int64(r.m.end) == 0 {
		return io.ErrUnexpectedEOF
	}
	if err != nil {
		if errors.Is(err, io.EOF) {
			r.finish()
		}
		return err
	}
	r.inMember, r.crc, r.size, r.summed = true, 0, 0, r.m.o
	return nil
}

func (r *Reader) closeMember() error {
	r.sum()
	r.finishPoint() // no match reaches back over a member's start
	crc, size, err := r.m.trailer()
	if err != nil {
		return err
	}
	if crc != r.crc || size != r.size {
		return fmt.Errorf("%w: gzip member's checksum", ErrCorrupt)
	}
	r.inMember = false
	return nil
}

func (r *Reader) sum() {
	run := r.m.out[r.summed:r.m.o]
	r.crc = crc32.Update(r.crc, crc32.IEEETable, run)
	r.size += uint32(len(run))
	r.summed = r.m.o
}

// slide makes room in out and keeps the window.
func (r *Reader) slide() {
	r.sum()
	by := r.m.o - WindowSize
	copy(r.m.out, r.m.out[by:r.m.o])
	r.m.o -= by
	r.m.hist = max(0, r.m.hist-by)
	r.m.track -= by
	r.given -= by
	r.summed -= by
	r.outBase += int64(by)
}

// supply loads more input. It keeps the 8 bytes before pos, which alignByte
// may go back to.
func (r *Reader) supply() error {
	from := max(0, r.m.pos-8)
	n := copy(r.m.in, r.m.in[from:r.m.end])
	r.inBase += int64(from)
	r.m.pos -= from
	r.m.end = n
	for empty := 0; r.m.end < inMargin+8; {
		n, err := r.src.Read(r.m.in[r.m.end:inSize])
		r.m.end += n
		if n > 0 {
			empty = 0
		} else if empty++; empty > 100 && err == nil {
			return io.ErrNoProgress
		}
		if err == io.EOF {
			r.m.eof = true
			clear(r.m.in[r.m.end:])
			return nil
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (r *Reader) out() int64 { return r.outBase + int64(r.m.o) }

func (r *Reader) reportStops() {
	if r.rec.Grain <= 0 {
		return
	}
	for r.nextStop <= r.out() {
		if r.rec.Stop != nil {
			r.rec.Stop(r.nextStop, r.inBase+int64(r.m.bit()+7)/8)
		}
		r.nextStop += r.rec.Grain
	}
}

func (r *Reader) finish() {
	if r.rec.Stop != nil && r.rec.Grain > 0 {
		r.rec.Stop(r.out(), r.inBase+int64(r.m.end))
	}
}

func (r *Reader) maybePoint() {
	if r.rec.Point == nil || r.out() < r.nextPoint {
		return
	}
	r.finishPoint()
	r.nextPoint = r.out() + r.rec.Spacing
	c := &Point{In: r.inBase*8 + int64(r.m.bit()), Out: r.out()}
	if r.m.hist == r.m.o {
		r.rec.Point(*c)
		return
	}
	c.Window = make([]byte, WindowSize)
	have := min(r.m.o, WindowSize)
	copy(c.Window[WindowSize-have:], r.m.out[r.m.o-have:r.m.o])
	r.pending = c
	r.m.track = r.m.o
	r.m.used = usedBytes{}
}

func (r *Reader) maybeFinishPoint() {
	if r.pending != nil && r.out() >= r.pending.Out+WindowSize {
		r.finishPoint()
	}
}

func (r *Reader) finishPoint() {
	if r.pending == nil {
		return
	}
	r.m.used.keep(r.pending.Window)
	r.rec.Point(*r.pending)
	r.pending = nil
	r.m.track = 0
}
