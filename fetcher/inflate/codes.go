package inflate

import "encoding/binary"

// codes decodes Huffman-coded data: the hot loop. All its state is in local
// variables; one refill of the bit buffer serves up to three literals, or the
// length half of a match, and a second one the distance.
//
// It runs while 8 bytes can be loaded. At the end of the input these may be
// padding zeros: run and corrupt tell by overrun whether any were used.
func (d *decoder) codes(limit int) error {
	in, pos, bb, nb := d.in, d.pos, d.bb, d.nb
	out, o := d.out, d.o
	lit, dist := d.lit, d.dist
	track, hist := d.track, d.hist

	// A step loads from at most pos+8, twice, in a slice padded by inMargin.
	inLimit := d.end - 24
	if d.eof {
		inLimit = d.end + 8
	}
	inLimit = min(inLimit, len(in)-24)

	var err error
	for o < limit && pos <= inLimit {
		bb |= binary.LittleEndian.Uint64(in[pos:]) << (nb & 63)
		pos += int((63 - nb) >> 3)
		nb |= 56

		e := lit[bb&(1<<litPrimary-1)]
		if e&isLiteral != 0 {
			bb >>= e & nibble
			nb -= uint(e & nibble)
			out[o] = byte(e >> valueShift)
			o++
			e = lit[bb&(1<<litPrimary-1)]
			if e&isLiteral != 0 {
				bb >>= e & nibble
				nb -= uint(e & nibble)
				out[o] = byte(e >> valueShift)
				o++
				e = lit[bb&(1<<litPrimary-1)]
				if e&isLiteral != 0 {
					bb >>= e & nibble
					nb -= uint(e & nibble)
					out[o] = byte(e >> valueShift)
					o++
					continue
				}
			}
		}
		// At least 56-2*11 = 34 bits are left: enough for a code of 15 and
		// 5 extra bits.
		if e&(isLink|isEnd|isInvalid) != 0 {
			if e&isLink != 0 {
				bb >>= e & nibble
				nb -= uint(e & nibble)
				e = lit[(uint64(e>>valueShift)+bb&(1<<(e>>extraShift&nibble)-1))&(litTableLen-1)]
			}
			if e&isInvalid != 0 {
				err = errInvalidCode
				break
			}
			bb >>= e & nibble
			nb -= uint(e & nibble)
			if e&isLiteral != 0 {
				out[o] = byte(e >> valueShift)
				o++
				continue
			}
			if e&isEnd != 0 {
				d.blockDone()
				break
			}
		} else {
			bb >>= e & nibble
			nb -= uint(e & nibble)
		}
		n := int(e>>valueShift) + int(bb&(1<<(e>>extraShift&nibble)-1))
		bb >>= e >> extraShift & nibble
		nb -= uint(e >> extraShift & nibble)

		bb |= binary.LittleEndian.Uint64(in[pos:]) << (nb & 63)
		pos += int((63 - nb) >> 3)
		nb |= 56
		e = dist[bb&(1<<distPrimary-1)]
		if e&(isLink|isInvalid) != 0 {
			if e&isLink != 0 {
				bb >>= e & nibble
				nb -= uint(e & nibble)
				e = dist[(uint64(e>>valueShift)+bb&(1<<(e>>extraShift&nibble)-1))&(distTableLen-1)]
			}
			if e&isInvalid != 0 {
				err = errInvalidCode
				break
			}
		}
		bb >>= e & nibble
		nb -= uint(e & nibble)
		back := int(e>>valueShift) + int(bb&(1<<(e>>extraShift&nibble)-1))
		bb >>= e >> extraShift & nibble
		nb -= uint(e >> extraShift & nibble)

		s := o - back
		if s < hist {
			err = errTooFar
			break
		}
		if s < track {
			d.used.mark(s-track+WindowSize, min(s+n, track)-track+WindowSize)
		}
		if back >= 16 && n <= 32 {
			// The common match: two or four words, past its end by up to 16.
			dst, src := out[o:o+32], out[s:s+32]
			a := binary.LittleEndian.Uint64(src)
			b := binary.LittleEndian.Uint64(src[8:])
			binary.LittleEndian.PutUint64(dst, a)
			binary.LittleEndian.PutUint64(dst[8:], b)
			if n > 16 {
				a = binary.LittleEndian.Uint64(src[16:])
				b = binary.LittleEndian.Uint64(src[24:])
				binary.LittleEndian.PutUint64(dst[16:], a)
				binary.LittleEndian.PutUint64(dst[24:], b)
			}
			o += n
			continue
		}
		o = copyMatch(out, o, s, n)
	}
	d.pos, d.bb, d.nb, d.o = pos, bb, nb, o
	if err != nil {
		return d.corrupt(err.Error())
	}
	return nil
}

// copyMatch appends n bytes from s, where the source may overlap what is
// written, and returns the new end.
func copyMatch(out []byte, o, s, n int) int {
	if o-s >= n {
		copy(out[o:o+n], out[s:s+n])
		return o + n
	}
	if o-s == 1 {
		v, run := out[s], out[o:o+n]
		for i := range run {
			run[i] = v
		}
		return o + n
	}
	// Each round copies all that is there and so doubles it.
	for end := o + n; o < end; {
		o += copy(out[o:end], out[s:o])
	}
	return o
}
