package index

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"

	"github.com/lacuna-snapshotter/lacuna/fetcher/spans"
)

const (
	magic     = "LACUNAX1"
	fixedSize = 28

	// groupSize is how many checkpoints share a group: windows compress a
	// little better together, but a reader needs one and fetches all.
	groupSize = 8

	maxHead   = 64 << 20 // a layer of 100 GB has half of that
	maxWindow = 64 << 20 // of zstd; our encoder uses 1 MiB, older ones used 16
)

// ErrFormat is matched by errors about index data that cannot be right.
var ErrFormat = errors.New("invalid index")

// Group is a run of checkpoints whose windows are stored together.
type Group struct {
	First, Count int   // checkpoints
	Off          int64 // in the index
	Len          int64 // packed
	Digest       spans.Digest
}

// Head is what of a layer's index is needed to mount it and to fetch.
type Head struct {
	Map       *spans.Map
	Bootstrap []byte
	Groups    []Group
	Size      int64 // length of the encoded head
}

// IndexSize is the length of the whole index of the layer.
func (h *Head) IndexSize() int64 {
	if n := len(h.Groups); n > 0 {
		return h.Groups[n-1].Off + h.Groups[n-1].Len
	}
	return h.Size
}

// Spans is the digest of the digests of all spans: two indexes of one layer and
// bootstrap that are right have the same.
func (h *Head) Spans() digest.Digest {
	d := digest.SHA256.Digester()
	for i := range h.Map.Digests {
		d.Hash().Write(h.Map.Digests[i][:]) // never fails
	}
	return d.Digest()
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
	put(int64(len(m.Sections)))
	var blob, stream int64
	for _, e := range m.Sections {
		b = binary.AppendVarint(b, int64(e.Blob)-nextBlock(blob))
		put(int64(e.Stream) - stream)
		put(e.Len)
		blob, stream = int64(e.Blob)+e.Len, int64(e.Stream)+e.Len
	}
	put(int64(len(m.Checkpoints)))
	var last spans.Checkpoint
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
	var stop spans.PackedOffset
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

// nextBlock is where a section behind one that ends at off begins, but for the
// runs of a sparse file.
func nextBlock(off int64) int64 { return (off + 4095) / 4096 * 4096 }

func rawDigest(d digest.Digest) []byte {
	b, err := hex.DecodeString(d.Encoded())
	if err != nil || len(b) != sha256.Size {
		return make([]byte, sha256.Size) // Map.Check has refused it
	}
	return b
}
