package spans

import (
	"bytes"
	"crypto/sha256"
	"testing"

	"github.com/lacuna-snapshotter/lacuna/erofs"
)

// Digests of spans are those of the blob, whether its zeros are hashed or not.
func TestSpansAroundHoles(t *testing.T) {
	const span = 8192
	m := &Map{SpanSize: span, BlobSize: 20*span + 4096}
	s := &spanHasher{m: m, h: sha256.New(), zeros: make([]byte, span)}
	blob := make([]byte, m.BlobSize)
	var stream int64
	for _, e := range []erofs.Extent{{Blob: 0, Len: 5}, {Blob: 4096, Len: 4096}, {Blob: 5*span + 4096, Len: span}, {Blob: 15 * span, Len: 3}} {
		data := bytes.Repeat([]byte{byte(e.Len)}, int(e.Len))
		copy(blob[e.Blob:], data)
		e.Stream = stream
		stream += e.Len
		if err := s.extent(e, bytes.NewReader(data)); err != nil {
			t.Fatal(err)
		}
	}
	s.finish()
	if int64(len(m.Digests)) != m.Spans() {
		t.Fatalf("%d digests for %d spans", len(m.Digests), m.Spans())
	}
	for i, d := range m.Digests {
		from, to := m.span(int64(i))
		if d != Digest(sha256.Sum256(blob[from:to])) {
			t.Errorf("span %d", i)
		}
	}
}
