package index

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"

	"github.com/lacuna-snapshotter/lacuna/fetcher"
)

const (
	magic     = "LACUNAX1"
	fixedSize = 28

	// groupSize is how many checkpoints share a group: windows compress a
	// little better together, but a reader needs one and fetches all.
	groupSize = 8

	maxHead      = 256 << 20
	maxBootstrap = 512 << 20
	maxMap       = 256 << 20
	maxGroup     = 8 << 20
	maxWindow    = 64 << 20 // of zstd; our encoder uses 1 MiB, older ones used 16
)

// ErrFormat is matched by errors about index data that cannot be right.
var ErrFormat = errors.New("invalid index")

// Group is a run of checkpoints whose windows are stored together.
type Group struct {
	First, Count int   // checkpoints
	Off          int64 // in the layer blob
	Len          int64 // packed
	Digest       fetcher.Digest
}

// Head is what of a layer's index is needed to mount it and to fetch.
type Head struct {
	Map       *fetcher.Map
	Bootstrap []byte
	Groups    []Group
	Size      int64 // length of the encoded head
}

// BlobSize is the length of the whole layer blob.
func (h *Head) BlobSize() int64 {
	if n := len(h.Groups); n > 0 {
		return h.Groups[n-1].Off + h.Groups[n-1].Len
	}
	return h.Size
}

// group finds the group of a checkpoint.
func (h *Head) group(checkpoint int) (Group, error) {
	for _, g := range h.Groups {
		if checkpoint >= g.First && checkpoint < g.First+g.Count {
			return g, nil
		}
	}
	return Group{}, fmt.Errorf("%w: no window for checkpoint %d", ErrFormat, checkpoint)
}

// encodeHead writes a head. The groups' offsets in it are set to follow it.
func encodeHead(h *Head, enc *zstd.Encoder) []byte {
	raw := encodeMap(h)
	bootstrap := enc.EncodeAll(h.Bootstrap, nil)
	m := enc.EncodeAll(raw, nil)
	size := fixedSize + len(bootstrap) + len(m)
	b := append(make([]byte, 0, size), magic...)
	for _, n := range []int{size, len(h.Bootstrap), len(bootstrap), len(raw), len(m)} {
		b = binary.LittleEndian.AppendUint32(b, uint32(n))
	}
	b = append(append(b, bootstrap...), m...)
	h.Size = int64(len(b))
	placeGroups(h)
	return b
}

func placeGroups(h *Head) {
	off := h.Size
	for i := range h.Groups {
		h.Groups[i].Off = off
		off += h.Groups[i].Len
	}
}

func encodeMap(h *Head) []byte {
	m := h.Map
	b := append(rawDigest(m.Layer), rawDigest(m.DiffID)...)
	put := func(n int64) { b = binary.AppendUvarint(b, uint64(n)) }
	for _, n := range []int64{m.PackedSize, m.StreamSize, m.BlobSize, m.SpanSize, m.Grain} {
		put(n)
	}
	put(int64(len(m.Extents)))
	var blob, stream int64
	for _, e := range m.Extents {
		b = binary.AppendVarint(b, int64(e.Blob)-nextBlock(blob))
		put(int64(e.Stream) - stream)
		put(e.Len)
		blob, stream = int64(e.Blob)+e.Len, int64(e.Stream)+e.Len
	}
	put(int64(len(m.Checkpoints)))
	var last fetcher.Checkpoint
	for _, c := range m.Checkpoints {
		put(c.Bit - last.Bit)
		window := int64(0)
		if c.Window {
			window = 1
		}
		put(int64(c.Stream-last.Stream)<<1 | window)
		last = c
	}
	put(int64(len(m.Stops)))
	var stop fetcher.PackedOffset
	for _, s := range m.Stops {
		put(int64(s - stop))
		stop = s
	}
	put(int64(len(h.Groups)))
	for _, g := range h.Groups {
		put(int64(g.Count))
		put(g.Len)
		b = append(b, g.Digest[:]...)
	}
	put(int64(len(m.Digests)))
	for _, d := range m.Digests {
		b = append(b, d[:]...)
	}
	return b
}

// nextBlock is where an extent behind one that ends at off begins, but for the
// runs of a sparse file.
func nextBlock(off int64) int64 { return (off + 4095) / 4096 * 4096 }

func rawDigest(d digest.Digest) []byte {
	b, err := hex.DecodeString(d.Encoded())
	if err != nil || len(b) != sha256.Size {
		return make([]byte, sha256.Size) // Map.Check has refused it
	}
	return b
}

// DecodeHead reads the head of a layer blob; b may hold more. The map in it has
// passed its check; the bootstrap has not been looked at.
func DecodeHead(b []byte) (*Head, error) {
	if len(b) < fixedSize || string(b[:8]) != magic {
		return nil, fmt.Errorf("%w: not a layer index of this version", ErrFormat)
	}
	u := func(i int) int64 { return int64(binary.LittleEndian.Uint32(b[8+4*i:])) }
	size, rawBoot, packedBoot, rawMap, packedMap := u(0), u(1), u(2), u(3), u(4)
	if size > int64(len(b)) || size > maxHead || rawBoot > maxBootstrap || rawMap > maxMap ||
		fixedSize+packedBoot+packedMap != size {
		return nil, fmt.Errorf("%w: head of %d bytes with parts of %d and %d", ErrFormat, size, packedBoot, packedMap)
	}
	bootstrap, err := unpack(b[fixedSize:fixedSize+packedBoot], rawBoot)
	if err != nil {
		return nil, fmt.Errorf("bootstrap: %w", err)
	}
	m, err := unpack(b[fixedSize+packedBoot:size], rawMap)
	if err != nil {
		return nil, fmt.Errorf("map: %w", err)
	}
	h := &Head{Bootstrap: bootstrap, Size: size}
	if err := decodeMap(m, h); err != nil {
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
		zstd.WithDecodeAllCapLimit(true), zstd.WithDecoderMaxWindow(maxWindow))
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
	b  []byte
	ok bool
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

// count reads how many items of at least size bytes follow.
func (r *mapReader) count(size int) int {
	n := r.int()
	if n > int64(len(r.b)/size) {
		r.ok = false
		return 0
	}
	return int(n)
}

func (r *mapReader) digest() (d fetcher.Digest) {
	if len(r.b) < len(d) {
		r.ok = false
		return d
	}
	copy(d[:], r.b)
	r.b = r.b[len(d):]
	return d
}

func decodeMap(b []byte, h *Head) error {
	r := &mapReader{b: b, ok: true}
	layer, diffID := r.digest(), r.digest()
	m := &fetcher.Map{
		Layer:  digest.NewDigestFromEncoded(digest.SHA256, hex.EncodeToString(layer[:])),
		DiffID: digest.NewDigestFromEncoded(digest.SHA256, hex.EncodeToString(diffID[:])),
	}
	for _, n := range []*int64{&m.PackedSize, &m.StreamSize, &m.BlobSize, &m.SpanSize, &m.Grain} {
		*n = r.int()
	}
	m.Extents = make([]fetcher.Extent, r.count(3))
	var blob, stream int64
	for i := range m.Extents {
		e := &m.Extents[i]
		e.Blob = fetcher.BlobOffset(nextBlock(blob) + r.signed())
		e.Stream = fetcher.StreamOffset(stream + r.int())
		e.Len = r.int()
		blob, stream = int64(e.Blob)+e.Len, int64(e.Stream)+e.Len
		if blob > limit || stream > limit {
			return fmt.Errorf("%w: extent %d", ErrFormat, i)
		}
	}
	m.Checkpoints = make([]fetcher.Checkpoint, r.count(2))
	var last fetcher.Checkpoint
	for i := range m.Checkpoints {
		bit := r.int()
		v := r.int()
		last = fetcher.Checkpoint{Bit: last.Bit + bit, Stream: last.Stream + fetcher.StreamOffset(v>>1), Window: v&1 == 1}
		if last.Bit > 8*limit || last.Stream > limit {
			return fmt.Errorf("%w: checkpoint %d", ErrFormat, i)
		}
		m.Checkpoints[i] = last
	}
	m.Stops = make([]fetcher.PackedOffset, r.count(1))
	var stop fetcher.PackedOffset
	for i := range m.Stops {
		if stop += fetcher.PackedOffset(r.int()); stop > limit {
			return fmt.Errorf("%w: stop %d", ErrFormat, i)
		}
		m.Stops[i] = stop
	}
	h.Groups = make([]Group, r.count(2+sha256.Size))
	first := 0
	for i := range h.Groups {
		g := Group{First: first, Count: int(r.int()), Len: r.int(), Digest: r.digest()}
		if g.Count < 1 || g.Count > groupSize || g.Len > maxGroup {
			return fmt.Errorf("%w: group %d of %d windows, %d bytes", ErrFormat, i, g.Count, g.Len)
		}
		first += g.Count
		h.Groups[i] = g
	}
	m.Digests = make([]fetcher.Digest, r.count(sha256.Size))
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
