package ondemand

import (
	"bytes"
	"math/bits"
	"sync"
)

// Bitmap tells which spans of a blob are filled. Its methods may be called
// concurrently.
type Bitmap struct {
	mu     sync.RWMutex
	spans  int64
	bits   []byte // span 0 in the lowest bit of the first byte
	filled int64
}

// NewBitmap has no span filled.
func NewBitmap(spans int64) *Bitmap {
	return &Bitmap{spans: spans, bits: make([]byte, (spans+7)/8)}
}

// Has reports whether a span is filled.
func (m *Bitmap) Has(span int64) bool {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.bits[span/8]>>(span%8)&1 == 1
}

// Set marks a span as filled.
func (m *Bitmap) Set(span int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.bits[span/8]>>(span%8)&1 == 0 {
		m.bits[span/8] |= 1 << (span % 8)
		m.filled++
	}
}

// Clear marks all spans as holes.
func (m *Bitmap) Clear() {
	m.mu.Lock()
	defer m.mu.Unlock()
	clear(m.bits)
	m.filled = 0
}

// Count is how many spans are filled.
func (m *Bitmap) Count() int64 {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.filled
}

// FirstHole is the first span that is not filled, or the number of spans.
func (m *Bitmap) FirstHole() int64 {
	m.mu.RLock()
	defer m.mu.RUnlock()
	for i, b := range m.bits {
		if b != 0xff {
			return min(m.spans, int64(i*8+bits.TrailingZeros8(^b)))
		}
	}
	return m.spans
}

// clone is a copy of the bits.
func (m *Bitmap) clone() []byte {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return bytes.Clone(m.bits)
}

// replace sets all bits, those past the last span being zero.
func (m *Bitmap) replace(b []byte) {
	m.mu.Lock()
	defer m.mu.Unlock()
	copy(m.bits, b)
	m.filled = count(m.bits)
}

func count(bitmap []byte) (n int64) {
	for _, b := range bitmap {
		n += int64(bits.OnesCount8(b))
	}
	return n
}
