package spans_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/lacuna-snapshotter/lacuna/fetcher/spans"
)

// memory is a packed layer, and the windows of its checkpoints.
type memory struct {
	packed  []byte
	windows map[int][]byte
}

func (m *memory) Open(_ context.Context, off, n int64) io.ReadCloser {
	return io.NopCloser(io.NewSectionReader(bytes.NewReader(m.packed), off, n))
}

func (m *memory) Window(_ context.Context, checkpoint int) ([]byte, error) {
	return m.windows[checkpoint], nil
}

// A layer is read once, when its index is made; then any span can be fetched by
// itself, and is verified.
func Example() {
	ctx := context.Background()
	m := &memory{windows: map[int][]byte{}}
	var packed bytes.Buffer
	w := gzip.NewWriter(&packed)
	files := tar.NewWriter(w)
	for _, name := range []string{"hosts", "motd"} {
		content := strings.Repeat("a line of "+name+"\n", 10000)
		_ = files.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(content))})
		_, _ = io.WriteString(files, content)
	}
	_ = files.Close()
	_ = w.Close()
	m.packed = packed.Bytes()

	built, err := spans.Build(ctx, bytes.NewReader(m.packed), spans.BuildOptions{}, func(checkpoint int, window []byte) error {
		m.windows[checkpoint] = window
		return nil
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	layer := spans.Layer{Map: built.Map, Remote: m, Windows: m}
	last := built.Map.Spans() - 1
	err = layer.Fetch(ctx, last, last+1, func(span int64, data []byte) error {
		line, _, _ := strings.Cut(string(data[1:]), "\n") // the span may begin within a line
		_, next, _ := strings.Cut(string(data), line+"\n")
		next, _, _ = strings.Cut(next, "\n")
		fmt.Printf("span %d of %d has %q\n", span, built.Map.Spans(), next)
		return nil
	})
	fmt.Println(err)
	// Output:
	// span 4 of 5 has "a line of motd"
	// <nil>
}
