package inflate_test

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"math/rand/v2"

	"github.com/lacuna-snapshotter/lacuna/fetcher/inflate"
)

// A stream is read once, from its start, and then from a point in the middle.
func Example() {
	text := make([]byte, 1<<20)
	r := rand.New(rand.NewPCG(1, 2))
	for i := range text {
		text[i] = "lacuna, n.: a hole"[r.IntN(18)]
	}
	var packed bytes.Buffer
	w := gzip.NewWriter(&packed)
	_, _ = w.Write(text)
	_ = w.Close()

	var points []inflate.Point
	reader := inflate.NewReader(bytes.NewReader(packed.Bytes()), inflate.Recorder{
		Spacing: inflate.MinSpacing,
		Point:   func(p inflate.Point) { points = append(points, p) },
	})
	n, err := io.Copy(io.Discard, reader)
	fmt.Println(n, err)

	p := points[len(points)/2]
	var expander inflate.Expander
	data, err := expander.Expand(inflate.Piece{
		Data: packed.Bytes()[p.In/8:], Skip: int(p.In % 8), Window: p.Window,
	}, 1000)
	fmt.Println(p.Out > 0, bytes.Equal(data, text[p.Out:p.Out+1000]), err)
	// Output:
	// 1048576 <nil>
	// true true <nil>
}
