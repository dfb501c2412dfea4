package index

import (
	"context"

	"golang.org/x/sync/semaphore"
)

// What a head may take in memory follows from its own length, which its sender has
// paid for: real ones unpack to five or ten times that, those of layers of zeros to
// far more, but then they are small.
const (
	headBase   = 24 << 20
	headGrowth = 32

	// mapGrowth is what a map's tables take at most for each of its bytes: a
	// checkpoint is 24 bytes, and at least 2 encoded.
	mapGrowth = 12

	// decodeMemory is for all heads that are being decoded in the process. A pull
	// brings those of all layers of an image at once.
	decodeMemory = 256 << 20
)

func headMemory(size int64) int64 { return headBase + headGrowth*size }

var decoding = semaphore.NewWeighted(decodeMemory)

// takeMemory waits until n bytes may be used and returns what gives them back. A call
// that wants more than there is waits until it has all of it. Decoding waits for nothing
// else, so it ends.
func takeMemory(n int64) (release func()) {
	n = min(n, decodeMemory)
	_ = decoding.Acquire(context.Background(), n) // a background context does not end
	return func() { decoding.Release(n) }
}
