package index

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"github.com/klauspost/compress/zstd"

	"github.com/lacuna-snapshotter/lacuna/fetcher/layertest"
	"github.com/lacuna-snapshotter/lacuna/fetcher/spans"
)

// mapBytes encodes a map's beginning up to its tables.
func mapBytes(packed, stream, blob, span, grain uint64) []byte {
	b := make([]byte, 2*sha256.Size)
	for _, n := range []uint64{packed, stream, blob, span, grain} {
		b = binary.AppendUvarint(b, n)
	}
	return b
}

// repeated appends a table of n items.
func repeated(b []byte, n int, item ...byte) []byte {
	return append(binary.AppendUvarint(b, uint64(n)), bytes.Repeat(item, n)...)
}

// fixed is the fixed part of a head, and bytes of zeros behind it.
func fixed(size, boot, packedBoot, m, packedMap uint32, behind int) []byte {
	b := []byte(magic)
	for _, n := range []uint32{size, boot, packedBoot, m, packedMap} {
		b = binary.LittleEndian.AppendUint32(b, n)
	}
	return append(b, make([]byte, behind)...)
}

// hostileHeads are small and would be large: by what they unpack to, and by what
// their tables, of many items, take in memory.
func hostileHeads(t testing.TB, many int) map[string][]byte {
	t.Helper()
	enc, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest))
	if err != nil {
		t.Fatal(err)
	}
	defer enc.Close()
	head := func(bootstrap, m []byte) []byte {
		packedBoot, packedMap := enc.EncodeAll(bootstrap, nil), enc.EncodeAll(m, nil)
		b := []byte(magic)
		for _, n := range []int{fixedSize + len(packedBoot) + len(packedMap), len(bootstrap), len(packedBoot), len(m), len(packedMap)} {
			b = binary.LittleEndian.AppendUint32(b, uint32(n))
		}
		return append(append(b, packedBoot...), packedMap...)
	}
	const tib = 1 << 40
	start := func() []byte { return mapBytes(tib, tib, tib, 4096, 4096) }
	noise := make([]byte, 900<<10)
	r := rand.New(rand.NewPCG(1, 2))
	for i := range noise {
		noise[i] = byte(r.Uint32())
	}
	return map[string][]byte{
		"bootstrap":           head(make([]byte, 16*many), nil),
		"bootstrap and noise": head(append(make([]byte, 12*many), noise...), nil),
		"sections":            head(nil, repeated(start(), many, 0, 0, 1)),
		"checkpoints":         head(nil, repeated(repeated(start(), 0), many, 1, 1)),
		"stops":               head(nil, repeated(repeated(repeated(start(), 0), 0), many, 1)),
		"groups":              head(nil, repeated(repeated(repeated(repeated(start(), 0), 1, 1, 1), 0), many/16, make([]byte, 34)...)),
		"digests":             head(nil, repeated(repeated(repeated(repeated(repeated(start(), 0), 0), 0), 0), many/16, make([]byte, 32)...)),
		"noise":               head(noise, nil),
		"lies about the size": fixed(fixedSize+32, 480<<20, 16, 0, 16, 32),
	}
}

// TestHeadsMemory decodes hostile heads of up to 1 MB and counts what they allocate.
func TestHeadsMemory(t *testing.T) {
	const most = 64 << 20
	for name, b := range hostileHeads(t, 16<<20) {
		if len(b) > 1_000_000 {
			t.Fatalf("%s: a head of %d bytes", name, len(b))
		}
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		_, err := DecodeHead(b)
		runtime.ReadMemStats(&after)
		if !errors.Is(err, ErrFormat) {
			t.Errorf("%s: %v", name, err)
		}
		if n := after.TotalAlloc - before.TotalAlloc; n > most {
			t.Errorf("%s: a head of %d bytes allocates %d MiB", name, len(b), n>>20)
		}
	}
}

// TestHeadsShareMemory decodes nothing while others use all memory there is for it.
func TestHeadsShareMemory(t *testing.T) {
	enc, err := newEncoder(zstd.SpeedDefault)
	if err != nil {
		t.Fatal(err)
	}
	defer enc.Close()
	h, _ := createIndex(t, layertest.Gzip(t, layertest.Tar(t, 3, 1)), spans.BuildOptions{})
	b := encodeHead(h, enc)
	synctest.Test(t, func(t *testing.T) {
		release := takeMemory(2 * decodeMemory) // more than there is: all of it
		var done atomic.Int32
		for range 8 {
			go func() {
				if _, err := DecodeHead(b); err != nil {
					t.Error(err)
				}
				done.Add(1)
			}()
		}
		synctest.Wait()
		if n := done.Load(); n != 0 {
			t.Errorf("%d heads were decoded without memory", n)
		}
		release()
		synctest.Wait()
		if n := done.Load(); n != 8 {
			t.Errorf("%d of 8 heads were decoded", n)
		}
	})
	var users sync.WaitGroup
	var used, most atomic.Int64
	for range 64 {
		users.Go(func() {
			release := takeMemory(decodeMemory / 3)
			most.Store(max(most.Load(), used.Add(1)))
			runtime.Gosched()
			used.Add(-1)
			release()
		})
	}
	users.Wait()
	if most.Load() > 3 {
		t.Errorf("%d thirds of the memory were used at once", most.Load())
	}
}
