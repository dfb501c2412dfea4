package inflate

import "math/bits"

// Decode tables. A code of up to primary bits is resolved by one look-up;
// longer ones lead through a subtable that follows the primary entries.
//
// An entry holds, from its low bits up:
//
//	0..3    bits the code takes from the stream (of a subtable entry: the rest)
//	4..7    extra bits that follow; of a link: the subtable's index bits
//	8..11   kind flags
//	16..31  literal byte, length base, distance base, or subtable offset
type entry = uint32

const (
	isLiteral entry = 1 << 8
	isLink    entry = 1 << 9
	isEnd     entry = 1 << 10
	isInvalid entry = 1 << 11

	valueShift = 16
	extraShift = 4
	nibble     = 15
)

const (
	litPrimary  = 11
	distPrimary = 8
	maxCodeLen  = 15 // RFC 1951, 3.2.7

	// The longest tables that complete codes can need with these primaries
	// are 2342 and 402 entries (zlib's enough.c); the arrays are rounded up
	// to powers of two so that a mask replaces the bounds check.
	litTableLen  = 4096
	distTableLen = 512

	maxLitCodes  = 286 // RFC 1951, 3.2.7: HLIT
	maxDistCodes = 30  // RFC 1951, 3.2.7: HDIST
	numCodeLens  = 19
)

type (
	litTable  [litTableLen]entry
	distTable [distTableLen]entry
)

// RFC 1951, 3.2.5.
var (
	lengthBase = [29]uint16{
		3, 4, 5, 6, 7, 8, 9, 10, 11, 13, 15, 17, 19, 23, 27, 31,
		35, 43, 51, 59, 67, 83, 99, 115, 131, 163, 195, 227, 258,
	}
	lengthExtra = [29]uint8{
		0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2,
		3, 3, 3, 3, 4, 4, 4, 4, 5, 5, 5, 5, 0,
	}
	codeLenOrder = [numCodeLens]uint8{16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15}

	litSymbols  = makeLitSymbols()
	distSymbols = makeDistSymbols()
	fixedLit    = makeFixedLit()
	fixedDist   = makeFixedDist()
)

// makeLitSymbols gives each literal/length symbol its entry without the code
// length. 286 and 287 exist in the fixed code only and never in valid data.
func makeLitSymbols() (s [288]entry) {
	for i := range 256 {
		s[i] = isLiteral | entry(i)<<valueShift
	}
	s[256] = isEnd
	for i := range lengthBase {
		s[257+i] = entry(lengthBase[i])<<valueShift | entry(lengthExtra[i])<<extraShift
	}
	s[286], s[287] = isInvalid, isInvalid
	return s
}

func makeDistSymbols() (s [32]entry) {
	base := entry(1)
	for i := range maxDistCodes {
		extra := max(0, i/2-1)
		s[i] = base<<valueShift | entry(extra)<<extraShift
		base += 1 << extra
	}
	s[30], s[31] = isInvalid, isInvalid
	return s
}

func makeFixedLit() *litTable {
	var lens [288]uint8
	for i := range lens {
		switch {
		case i < 144:
			lens[i] = 8
		case i < 256:
			lens[i] = 9
		case i < 280:
			lens[i] = 7
		default:
			lens[i] = 8
		}
	}
	t := new(litTable)
	build(t[:], litPrimary, lens[:], litSymbols[:])
	return t
}

func makeFixedDist() *distTable {
	var lens [32]uint8
	for i := range lens {
		lens[i] = 5
	}
	t := new(distTable)
	build(t[:], distPrimary, lens[:], distSymbols[:])
	return t
}

// build fills table with the canonical Huffman code of the given lengths. It
// reports whether the code is one that compress/flate accepts: complete, empty,
// or a single code of one bit. Unused patterns decode as isInvalid.
func build(table []entry, primary int, lens []uint8, symbols []entry) bool {
	var count [maxCodeLen + 1]int
	longest := 0
	for _, n := range lens {
		count[n]++
		longest = max(longest, int(n))
	}
	count[0] = 0
	var next [maxCodeLen + 1]int
	code := 0
	for n := 1; n <= longest; n++ {
		code <<= 1
		next[n] = code
		code += count[n]
	}
	whole := longest > 0 && code == 1<<longest
	if !whole {
		for i := range table[:1<<primary] {
			table[i] = isInvalid
		}
		if longest == 0 {
			return true
		}
		if code != 1 || longest != 1 {
			return false
		}
	}
	if longest > primary {
		for i := range table[:1<<primary] {
			table[i] = 0
		}
	}
	for sym, n8 := range lens {
		n := int(n8)
		if n == 0 || n > primary {
			continue
		}
		c := int(bits.Reverse16(uint16(next[n]))) >> (16 - n)
		next[n]++
		e := symbols[sym] | entry(n)
		for i := c; i < 1<<primary; i += 1 << n {
			table[i] = e
		}
	}
	if longest > primary {
		buildLinks(table, primary, longest, lens, symbols, &next, &count)
	}
	return true
}

// buildLinks adds the codes longer than primary bits, each group with one
// primary prefix in a subtable as wide as the group's longest code.
func buildLinks(table []entry, primary, longest int, lens []uint8, symbols []entry, next, count *[maxCodeLen + 1]int) {
	// Canonical codes of one prefix are neighbours, ordered by length, so the
	// codes are taken in code order and a subtable is sized when its prefix
	// first appears.
	var order [maxLitCodes + 2]uint16
	var at [maxCodeLen + 1]int
	total := 0
	for n := primary + 1; n <= longest; n++ {
		at[n] = total
		total += count[n]
	}
	for sym, n := range lens {
		if int(n) > primary {
			order[at[n]] = uint16(sym)
			at[n]++
		}
	}
	free := 1 << primary
	for i, sym := range order[:total] {
		n := int(lens[sym])
		c := int(bits.Reverse16(uint16(next[n]))) >> (16 - n)
		next[n]++
		prefix := c & (1<<primary - 1)
		link := table[prefix]
		if link&isLink == 0 {
			width := subtableBits(n-primary, order[i:total], lens, primary)
			link = isLink | entry(primary) | entry(width)<<extraShift | entry(free)<<valueShift
			table[prefix] = link
			free += 1 << width
		}
		width := int(link >> extraShift & nibble)
		sub := table[link>>valueShift:]
		e := symbols[sym] | entry(n-primary)
		for k := c >> primary; k < 1<<width; k += 1 << (n - primary) {
			sub[k] = e
		}
	}
}

// subtableBits is the width of a subtable whose first code takes n bits in it:
// the smallest width that the codes which follow fill completely.
func subtableBits(n int, rest []uint16, lens []uint8, primary int) int {
	left := 1 << n
	for _, sym := range rest {
		m := int(lens[sym]) - primary
		if m > n {
			left <<= m - n
			n = m
		}
		left--
		if left <= 0 {
			break
		}
	}
	return n
}
