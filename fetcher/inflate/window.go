package inflate

import "errors"

var (
	errInvalidCode = errors.New("invalid code")
	errTooFar      = errors.New("match before the start of the window")
)

// usedBytes is a set of byte positions in one window.
type usedBytes [WindowSize / 64]uint64

// mark adds the half-open range [from, to).
func (u *usedBytes) mark(from, to int) {
	for from < to {
		word, bit := from/64, uint(from%64)
		n := min(64-int(bit), to-from)
		u[word] |= (1<<n - 1) << bit
		from += n
	}
}

// keep zeroes the bytes of a full window that are not in the set.
func (u *usedBytes) keep(window []byte) {
	for i, w := range u {
		part := window[i*64 : i*64+64]
		if w == 0 {
			clear(part)
			continue
		}
		for j := range part {
			part[j] &= -byte(w >> j & 1)
		}
	}
}
