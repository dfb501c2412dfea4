package inflate

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
)

// RFC 1952, 2.3. Flags that it reserves are ignored, as compress/gzip does:
// what containerd unpacks, we must.
const (
	gzipMagic   = 0x8b1f
	gzipDeflate = 8
	flagHCRC    = 1 << 1
	flagExtra   = 1 << 2
	flagName    = 1 << 3
	flagComment = 1 << 4

	trailerLen = 8

	// A header's strings have no length of their own. This is compress/gzip's
	// bound for each, with its NUL.
	maxString = 512
)

// members is the gzip framing around a decoder. supply is called when the
// decoder is starved and must add input or set eof.
type members struct {
	decoder
	supply func() error
}

func (m *members) feed() error {
	if !m.starved() {
		return nil
	}
	return m.supply()
}

// byte reads one byte of framing; the decoder must be aligned.
func (m *members) byte() (byte, error) {
	if m.pos >= m.end {
		if !m.eof {
			if err := m.supply(); err != nil {
				return 0, err
			}
		}
		if m.pos >= m.end {
			return 0, io.ErrUnexpectedEOF
		}
	}
	b := m.in[m.pos]
	m.pos++
	return b, nil
}

// header reads a member's header. It returns io.EOF where the input ends
// before its first byte.
func (m *members) header() error {
	h := headerReader{m: m}
	var fixed [10]byte
	for i := range fixed {
		b, err := h.byte()
		if errors.Is(err, io.ErrUnexpectedEOF) && i == 0 {
			return io.EOF
		}
		if err != nil {
			return err
		}
		fixed[i] = b
	}
	if binary.LittleEndian.Uint16(fixed[:]) != gzipMagic || fixed[2] != gzipDeflate {
		return fmt.Errorf("%w: not a gzip header", ErrCorrupt)
	}
	flags := fixed[3]
	if flags&flagExtra != 0 {
		n, err := h.uint16()
		if err != nil {
			return err
		}
		for range n {
			if _, err := h.byte(); err != nil {
				return err
			}
		}
	}
	for _, flag := range []byte{flagName, flagComment} {
		if flags&flag == 0 {
			continue
		}
		if err := h.skipString(); err != nil {
			return err
		}
	}
	if flags&flagHCRC != 0 {
		want := uint16(h.crc)
		got, err := h.uint16()
		if err != nil {
			return err
		}
		if got != want {
			return fmt.Errorf("%w: gzip header checksum", ErrCorrupt)
		}
	}
	m.state = atBlock
	m.hist = m.o
	return nil
}

// trailer reads the CRC-32 and the length that close a member.
func (m *members) trailer() (crc, size uint32, err error) {
	m.alignByte()
	var t [trailerLen]byte
	for i := range t {
		if t[i], err = m.byte(); err != nil {
			return 0, 0, err
		}
	}
	return binary.LittleEndian.Uint32(t[:]), binary.LittleEndian.Uint32(t[4:]), nil
}

// headerReader keeps the checksum of a header as it is read.
type headerReader struct {
	m   *members
	crc uint32
}

func (h *headerReader) byte() (byte, error) {
	b, err := h.m.byte()
	h.crc = crc32.Update(h.crc, crc32.IEEETable, []byte{b})
	return b, err
}

func (h *headerReader) uint16() (uint16, error) {
	lo, err := h.byte()
	if err != nil {
		return 0, err
	}
	hi, err := h.byte()
	return uint16(hi)<<8 | uint16(lo), err
}

func (h *headerReader) skipString() error {
	for range maxString {
		b, err := h.byte()
		if err != nil {
			return err
		}
		if b == 0 {
			return nil
		}
	}
	return fmt.Errorf("%w: gzip header with a string of more than %d bytes", ErrCorrupt, maxString)
}
