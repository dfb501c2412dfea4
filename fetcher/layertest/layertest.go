// Package layertest makes gzip layers for tests, from a seed: files of many
// sizes whose contents compress like real ones.
package layertest

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"testing"
	"time"
)

// Tar makes a tar of n files in a few directories.
func Tar(t testing.TB, n int, seed uint64) []byte {
	t.Helper()
	r := rand.New(rand.NewPCG(seed, 2))
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	add := func(h *tar.Header, content []byte) {
		h.ModTime, h.Size = time.Unix(1700000000, 0), int64(len(content))
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(content); err != nil {
			t.Fatal(err)
		}
	}
	for i := range n {
		if i%20 == 0 {
			add(&tar.Header{Name: fmt.Sprintf("dir%d/", i/20), Typeflag: tar.TypeDir, Mode: 0o755}, nil)
		}
		size := r.IntN(30000)
		switch r.IntN(12) {
		case 0:
			size = 0
		case 1:
			size = r.IntN(1 << 20)
		case 2:
			size = 4096 * r.IntN(9)
		}
		add(&tar.Header{Name: fmt.Sprintf("dir%d/file%d", i/20, i), Mode: 0o644}, Content(r, size))
		add(&tar.Header{Name: fmt.Sprintf("dir%d/link%d", i/20, i), Typeflag: tar.TypeSymlink, Linkname: fmt.Sprintf("file%d", i)}, nil)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// TarOf makes a tar of one executable.
func TarOf(t testing.TB, name string, content []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	if err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o755, Size: int64(len(content))}); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(content); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// Content is n bytes, part text that repeats, part noise.
func Content(r *rand.Rand, n int) []byte {
	b := make([]byte, 0, n+64)
	for len(b) < n {
		if r.IntN(3) == 0 {
			for range r.IntN(2000) {
				b = append(b, byte(r.Uint32()))
			}
			continue
		}
		b = fmt.Appendf(b, "usr/lib/python3/%d/module_%d.py\n", r.IntN(40), r.IntN(4000))
	}
	return b[:n]
}

// Gzip compresses a layer.
func Gzip(t testing.TB, tar []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	if _, err := w.Write(tar); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// Remote serves a packed layer from memory and notes what is read.
type Remote struct {
	Data  []byte
	Reads [][2]int64 // offset and length; for one goroutine
	Err   error      // returned instead of data
}

// Open implements spans.Remote.
func (m *Remote) Open(_ context.Context, off, n int64) io.ReadCloser {
	m.Reads = append(m.Reads, [2]int64{off, n})
	if m.Err != nil {
		return io.NopCloser(errReader{m.Err})
	}
	return io.NopCloser(bytes.NewReader(m.Data[off : off+n]))
}

type errReader struct{ err error }

func (e errReader) Read([]byte) (int, error) { return 0, e.err }
