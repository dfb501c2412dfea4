package inflate

import (
	"fmt"
	"io"
)

// Piece is a part of a gzip stream that can be decoded by itself.
type Piece struct {
	// Data is compressed data that begins with the byte that holds the
	// checkpoint's first bit. At least PieceMargin bytes of capacity behind it
	// save a copy.
	Data []byte
	// Skip is the number of low bits of Data[0] before the checkpoint, 0 to 7.
	Skip int
	// Window is the checkpoint's window: WindowSize bytes, or nil.
	Window []byte
}

// PieceMargin is the spare capacity that Expand wants behind Piece.Data.
const PieceMargin = inMargin + 64

// Expand decodes n bytes of output from a checkpoint into buf, which it grows
// as needed, and returns them. The result shares buf's memory.
//
// Nothing is verified but the structure of the deflate stream: a wrong window
// gives wrong bytes.
func Expand(p Piece, n int, buf []byte) ([]byte, error) {
	if p.Skip < 0 || p.Skip > 7 || len(p.Window) != 0 && len(p.Window) != WindowSize {
		return nil, fmt.Errorf("%w: checkpoint with %d bits and a window of %d bytes", ErrCorrupt, p.Skip, len(p.Window))
	}
	if len(p.Data) == 0 {
		return nil, io.ErrUnexpectedEOF
	}
	var m members
	m.supply = func() error { return nil }
	m.eof = true
	m.end = len(p.Data)
	if cap(p.Data)-len(p.Data) >= PieceMargin {
		m.in = p.Data[:len(p.Data)+PieceMargin]
		clear(m.in[m.end:])
	} else {
		m.in = make([]byte, len(p.Data)+PieceMargin)
		copy(m.in, p.Data)
	}
	need := WindowSize + n + outSlack
	if cap(buf) < need {
		buf = make([]byte, need)
	}
	m.out = buf[:need]
	m.o = WindowSize
	m.hist = WindowSize
	if len(p.Window) != 0 {
		copy(m.out, p.Window)
		m.hist = 0
	}
	m.refill()
	m.take(uint(p.Skip))

	limit := WindowSize + n
	for m.o < limit {
		if m.state == atEnd {
			if _, _, err := m.trailer(); err != nil {
				return nil, err
			}
			if err := m.header(); err != nil {
				if err == io.EOF {
					err = io.ErrUnexpectedEOF
				}
				return nil, err
			}
		}
		if err := m.run(limit); err != nil {
			return nil, err
		}
	}
	return m.out[WindowSize:limit], nil
}
