package inflate

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

const (
	// WindowSize is how far back a deflate match may reach (RFC 1951, 2).
	WindowSize = 32 << 10

	// A match is at most 258 bytes (RFC 1951, 3.2.5) and is copied in steps of
	// 32, so an output buffer has this much room past the limit of a run.
	outSlack = 258 + 64

	// No block header is longer than 14+19*3+316*14 bits (RFC 1951, 3.2.7),
	// no symbol pair than 48 bits: with this much input at hand a header needs
	// no check for its end.
	inMargin = 1024
)

// ErrCorrupt is matched by every error about the data itself.
var ErrCorrupt = errors.New("corrupt gzip data")

type state uint8

const (
	atBlock  state = iota // a block header follows
	inStored              // stored bytes follow
	inCodes               // Huffman codes follow
	atEnd                 // the last block is over
)

// decoder is raw deflate over byte slices. It never blocks: its owner keeps in
// and out supplied. out[hist:o] is the history that matches may refer to.
type decoder struct {
	in  []byte // input; zeros follow in[end:] where the input is at its end
	pos int    // next byte of in to load
	end int    // how much of in is real
	eof bool   // no input follows in[:end]
	bb  uint64 // loaded bits, next one lowest
	nb  uint   // how many of bb count

	out  []byte
	o    int
	hist int

	// Matches that read below track are noted in used, which covers
	// out[track-WindowSize:track].
	track int
	used  usedBytes

	state  state
	last   bool // the block is the member's last
	stored int  // bytes left of a stored block
	lit    *litTable
	dist   *distTable

	litBuf  litTable
	distBuf distTable
}

// bit is the position in in of the next unread bit.
func (d *decoder) bit() int { return d.pos*8 - int(d.nb) }

// starved reports that a step could run past the input at hand.
func (d *decoder) starved() bool { return !d.eof && d.pos+inMargin > d.end }

// overrun reports that bits past the end of the input were used.
func (d *decoder) overrun() bool { return d.bit() > d.end*8 }

func (d *decoder) corrupt(what string) error {
	if d.eof && d.overrun() {
		return io.ErrUnexpectedEOF
	}
	return fmt.Errorf("%w: %s", ErrCorrupt, what)
}

// refill loads at least 56 bits. It reads 8 bytes of in at pos.
func (d *decoder) refill() {
	d.bb |= binary.LittleEndian.Uint64(d.in[d.pos:]) << d.nb
	d.pos += int((63 - d.nb) >> 3)
	d.nb |= 56
}

func (d *decoder) take(n uint) uint {
	v := uint(d.bb & (1<<n - 1))
	d.bb >>= n
	d.nb -= n
	return v
}

// run decodes until out[:limit] is produced (a match may pass it), the deflate
// stream ends, or more input is needed, and returns at block starts too, so
// that the owner can place a point.
func (d *decoder) run(limit int) error {
	var err error
	switch d.state {
	case atBlock:
		return d.blockHeader()
	case inStored:
		err = d.copyStored(limit)
	case inCodes:
		err = d.codes(limit)
	}
	if err == nil && d.eof && d.overrun() {
		err = io.ErrUnexpectedEOF
	}
	return err
}

func (d *decoder) blockDone() {
	d.state = atBlock
	if d.last {
		d.state = atEnd
	}
}

func (d *decoder) blockHeader() error {
	d.refill()
	d.last = d.take(1) == 1
	switch d.take(2) {
	case 0:
		return d.storedHeader()
	case 1:
		d.lit, d.dist = fixedLit, fixedDist
	case 2:
		if err := d.dynamicHeader(); err != nil {
			return err
		}
		d.lit, d.dist = &d.litBuf, &d.distBuf
	default:
		return d.corrupt("reserved block type")
	}
	if d.overrun() {
		return io.ErrUnexpectedEOF
	}
	d.state = inCodes
	return nil
}

// alignByte drops the bits up to the next byte and the loaded bytes after it.
func (d *decoder) alignByte() {
	d.pos -= int(d.nb / 8)
	d.bb, d.nb = 0, 0
}

func (d *decoder) storedHeader() error {
	d.alignByte()
	if d.pos+4 > d.end {
		return io.ErrUnexpectedEOF
	}
	n := binary.LittleEndian.Uint16(d.in[d.pos:])
	if n != ^binary.LittleEndian.Uint16(d.in[d.pos+2:]) {
		return d.corrupt("stored block's length")
	}
	d.pos += 4
	d.stored = int(n)
	d.state = inStored
	if n == 0 {
		d.blockDone()
	}
	return nil
}

func (d *decoder) copyStored(limit int) error {
	n := min(d.stored, limit-d.o, d.end-d.pos)
	if n <= 0 {
		if d.eof && d.pos >= d.end {
			return io.ErrUnexpectedEOF
		}
		return nil
	}
	copy(d.out[d.o:d.o+n], d.in[d.pos:])
	d.o += n
	d.pos += n
	if d.stored -= n; d.stored == 0 {
		d.blockDone()
	}
	return nil
}

// dynamicHeader reads the two codes of a dynamic block (RFC 1951, 3.2.7).
func (d *decoder) dynamicHeader() error {
	nlit := int(d.take(5)) + 257
	ndist := int(d.take(5)) + 1
	nlen := int(d.take(4)) + 4
	if nlit > maxLitCodes || ndist > maxDistCodes {
		return d.corrupt("too many codes")
	}
	var lens [maxLitCodes + maxDistCodes]uint8
	for i := range nlen {
		if i%16 == 0 {
			d.refill()
		}
		lens[codeLenOrder[i]] = uint8(d.take(3))
	}
	var symbols [numCodeLens]entry
	for i := range symbols {
		symbols[i] = entry(i) << valueShift
	}
	const primary = 7 // code lengths' codes have at most 7 bits
	var table [1 << primary]entry
	if !build(table[:], primary, lens[:numCodeLens], symbols[:]) {
		return d.corrupt("code length code")
	}
	clear(lens[:numCodeLens])
	for i := 0; i < nlit+ndist; {
		d.refill()
		e := table[d.bb&(1<<primary-1)]
		if e&isInvalid != 0 {
			return d.corrupt("code length")
		}
		d.take(uint(e & nibble))
		sym := int(e >> valueShift)
		if sym < 16 {
			lens[i] = uint8(sym)
			i++
			continue
		}
		var n int
		var v uint8
		switch sym {
		case 16:
			if i == 0 {
				return d.corrupt("code length repeats nothing")
			}
			n, v = 3+int(d.take(2)), lens[i-1]
		case 17:
			n = 3 + int(d.take(3))
		case 18:
			n = 11 + int(d.take(7))
		}
		if i+n > nlit+ndist {
			return d.corrupt("too many code lengths")
		}
		for range n {
			lens[i] = v
			i++
		}
	}
	if !build(d.litBuf[:], litPrimary, lens[:nlit], litSymbols[:]) ||
		!build(d.distBuf[:], distPrimary, lens[nlit:nlit+ndist], distSymbols[:]) {
		return d.corrupt("Huffman code")
	}
	return nil
}
