package inflate

import (
	"errors"
	"fmt"
	"io"
)

// Piece is a part of a gzip stream that can be decoded by itself.
type Piece struct {
	// Data is compressed data that begins with the byte that holds the
	// point's first bit. At least PieceMargin bytes of capacity behind it
	// save a copy; they are overwritten.
	Data []byte
	// Skip is the number of low bits of Data[0] before the point, 0 to 7.
	Skip int
	// Window is the point's window: WindowSize bytes, or nil.
	Window []byte
}

// PieceMargin is the spare capacity that Expand wants behind Piece.Data.
const PieceMargin = inMargin + 64

// Expander decodes pieces. It keeps its buffers from call to call, and is for
// one goroutine at a time. The zero value is ready.
type Expander struct {
	m   members
	buf []byte
}

// Expand decodes n bytes of output from a point. They are valid until the
// next call.
//
// Nothing is verified but the structure of the deflate stream: a wrong window
// gives wrong bytes.
func (x *Expander) Expand(p Piece, n int) ([]byte, error) {
	if p.Skip < 0 || p.Skip > 7 || len(p.Window) != 0 && len(p.Window) != WindowSize {
		return nil, fmt.Errorf("%w: point with %d bits and a window of %d bytes", ErrCorrupt, p.Skip, len(p.Window))
	}
	if len(p.Data) == 0 {
		return nil, io.ErrUnexpectedEOF
	}
	m := &x.m
	m.restart(p)
	need := WindowSize + n + outSlack
	if cap(x.buf) < need {
		x.buf = make([]byte, need)
	}
	m.out = x.buf[:need]
	m.o, m.hist = WindowSize, WindowSize
	if len(p.Window) != 0 {
		copy(m.out, p.Window)
		m.hist = 0
	}
	m.refill()
	m.take(uint(p.Skip))

	limit := WindowSize + n
	for m.o < limit {
		if m.state == atEnd {
			if err := m.nextMember(); err != nil {
				return nil, err
			}
		}
		if err := m.run(limit); err != nil {
			return nil, err
		}
	}
	return m.out[WindowSize:limit], nil
}

// restart makes the decoder read p.Data, all of it at hand.
func (m *members) restart(p Piece) {
	m.supply = func() error { return nil }
	m.eof, m.end = true, len(p.Data)
	m.pos, m.bb, m.nb = 0, 0, 0
	m.state, m.last, m.stored, m.track = atBlock, false, 0, 0
	if cap(p.Data)-len(p.Data) >= PieceMargin {
		m.in = p.Data[:len(p.Data)+PieceMargin]
		clear(m.in[m.end:])
	} else {
		m.in = make([]byte, len(p.Data)+PieceMargin)
		copy(m.in, p.Data)
	}
}

// nextMember goes over a trailer, unchecked, and the header behind it.
func (m *members) nextMember() error {
	if _, _, err := m.trailer(); err != nil {
		return err
	}
	err := m.header()
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}
