package index

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"unsafe"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"

	"github.com/lacuna-snapshotter/lacuna/fetcher/inflate"
	"github.com/lacuna-snapshotter/lacuna/fetcher/spans"
)

// DecodeHead reads the head of a layer's index; b may hold more. The map in it has
// passed its check; the bootstrap has not been looked at.
func DecodeHead(b []byte) (*Head, error) {
	if len(b) < fixedSize || string(b[:8]) != magic {
		return nil, fmt.Errorf("%w: not a layer index of this version", ErrFormat)
	}
	u := func(i int) int64 { return int64(binary.LittleEndian.Uint32(b[8+4*i:])) }
	size, rawBoot, packedBoot, rawMap, packedMap := u(0), u(1), u(2), u(3), u(4)
	if size > int64(len(b)) || size > maxHead || fixedSize+packedBoot+packedMap != size {
		return nil, fmt.Errorf("%w: head of %d bytes with parts of %d and %d", ErrFormat, size, packedBoot, packedMap)
	}
	room := headMemory(size) - rawBoot - rawMap
	if room < 0 {
		return nil, fmt.Errorf("%w: head of %d bytes that unpacks to %d and %d", ErrFormat, size, rawBoot, rawMap)
	}
	defer takeMemory(rawBoot + rawMap + min(room, mapGrowth*rawMap))()
	bootstrap, err := unpack(b[fixedSize:fixedSize+packedBoot], rawBoot)
	if err != nil {
		return nil, fmt.Errorf("bootstrap: %w", err)
	}
	m, err := unpack(b[fixedSize+packedBoot:size], rawMap)
	if err != nil {
		return nil, fmt.Errorf("map: %w", err)
	}
	h := &Head{Bootstrap: bootstrap, Size: size}
	if err := decodeMap(m, h, room); err != nil {
		return nil, err
	}
	if err := h.Map.Check(); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrFormat, err)
	}
	return h, nil
}

// headSize is the length of a head by its fixed part.
func headSize(fixed []byte) int64 { return int64(binary.LittleEndian.Uint32(fixed[8:])) }

// unpack decompresses to exactly n bytes.
func unpack(b []byte, n int64) ([]byte, error) {
	dec, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true),
		zstd.WithDecodeAllCapLimit(true), zstd.WithDecoderMaxWindow(maxWindow), zstd.WithDecoderMaxMemory(uint64(max(n, maxWindow))))
	if err != nil {
		return nil, err
	}
	defer dec.Close()
	out, err := dec.DecodeAll(b, make([]byte, 0, n))
	if err != nil {
		return nil, fmt.Errorf("%w: zstd frame: %w", ErrFormat, err)
	}
	if int64(len(out)) != n {
		return nil, fmt.Errorf("%w: zstd frame of %d bytes, expected %d", ErrFormat, len(out), n)
	}
	return out, nil
}

// mapReader reads varints and fails once for all.
type mapReader struct {
	b    []byte
	ok   bool
	room int64 // bytes that may still be allocated
}

// limit keeps sums of a few values far from overflow.
const limit = 1 << 50

func (r *mapReader) int() int64 {
	v, n := binary.Uvarint(r.b)
	if n <= 0 || v > limit {
		r.ok = false
		r.b = nil
		return 0
	}
	r.b = r.b[n:]
	return int64(v)
}

func (r *mapReader) signed() int64 {
	v, n := binary.Varint(r.b)
	if n <= 0 || v > limit || v < -limit {
		r.ok = false
		r.b = nil
		return 0
	}
	r.b = r.b[n:]
	return v
}

// count reads how many items follow: each at least packed bytes here, size bytes in
// memory, and most at most.
func (r *mapReader) count(packed int, size uintptr, most int64) int {
	n := r.int()
	if n > most || n > int64(len(r.b)/packed) || n*int64(size) > r.room {
		r.ok = false
		r.b = nil
		return 0
	}
	r.room -= n * int64(size)
	return int(n)
}

// maxGroup is the most bytes that a group takes: zstd leaves alone what it cannot
// pack, and adds a header of 18 bytes and 3 for each block.
func maxGroup(windows int) int64 { return int64(windows)*inflate.WindowSize + 1024 }

func (r *mapReader) digest() (d spans.Digest) {
	if len(r.b) < len(d) {
		r.ok = false
		return d
	}
	copy(d[:], r.b)
	r.b = r.b[len(d):]
	return d
}

// decodeMap reads the map into h and allocates at most room bytes for its tables.
func decodeMap(b []byte, h *Head, room int64) error {
	r := &mapReader{b: b, ok: true, room: room}
	of, diffID := r.digest(), r.digest()
	m := &spans.Map{
		Layer:  digest.NewDigestFromEncoded(digest.SHA256, hex.EncodeToString(of[:])),
		DiffID: digest.NewDigestFromEncoded(digest.SHA256, hex.EncodeToString(diffID[:])),
	}
	for _, n := range []*int64{&m.PackedSize, &m.StreamSize, &m.BlobSize, &m.SpanSize, &m.Grain} {
		*n = r.int()
	}
	most, err := m.Counts()
	if err != nil {
		return fmt.Errorf("%w: %w", ErrFormat, err)
	}
	m.Sections = make([]spans.Section, r.count(3, unsafe.Sizeof(spans.Section{}), most.Sections))
	var blob, stream int64
	for i := range m.Sections {
		e := &m.Sections[i]
		e.Blob = spans.BlobOffset(nextBlock(blob) + r.signed())
		e.Stream = spans.StreamOffset(stream + r.int())
		e.Len = r.int()
		blob, stream = int64(e.Blob)+e.Len, int64(e.Stream)+e.Len
		if blob > limit || stream > limit {
			return fmt.Errorf("%w: section %d", ErrFormat, i)
		}
	}
	m.Checkpoints = make([]spans.Checkpoint, r.count(2, unsafe.Sizeof(spans.Checkpoint{}), most.Checkpoints))
	var last spans.Checkpoint
	for i := range m.Checkpoints {
		bit := r.int()
		v := r.int()
		last = spans.Checkpoint{Bit: last.Bit + bit, Stream: last.Stream + spans.StreamOffset(v>>1), Window: v&1 == 1}
		if last.Bit > 8*limit || last.Stream > limit {
			return fmt.Errorf("%w: checkpoint %d", ErrFormat, i)
		}
		m.Checkpoints[i] = last
	}
	m.Stops = make([]spans.PackedOffset, r.count(1, unsafe.Sizeof(spans.PackedOffset(0)), most.Stops))
	var stop spans.PackedOffset
	for i := range m.Stops {
		if stop += spans.PackedOffset(r.int()); stop > limit {
			return fmt.Errorf("%w: stop %d", ErrFormat, i)
		}
		m.Stops[i] = stop
	}
	h.Groups = make([]Group, r.count(2+sha256.Size, unsafe.Sizeof(Group{}), int64(len(m.Checkpoints))))
	first := 0
	for i := range h.Groups {
		g := Group{First: first, Count: int(r.int()), Len: r.int(), Digest: r.digest()}
		if g.Count < 1 || g.Count > groupSize || g.Len > maxGroup(g.Count) {
			return fmt.Errorf("%w: group %d of %d windows, %d bytes", ErrFormat, i, g.Count, g.Len)
		}
		first += g.Count
		h.Groups[i] = g
	}
	m.Digests = make([]spans.Digest, r.count(sha256.Size, sha256.Size, most.Digests))
	for i := range m.Digests {
		m.Digests[i] = r.digest()
	}
	if !r.ok || len(r.b) != 0 || first != len(m.Checkpoints) {
		return fmt.Errorf("%w: map", ErrFormat)
	}
	h.Map = m
	placeGroups(h)
	return nil
}
