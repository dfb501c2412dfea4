package main

import (
	"bytes"
	"context"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"github.com/klauspost/compress/gzip"

	"github.com/lacuna-snapshotter/lacuna/fetcher/index"
	"github.com/lacuna-snapshotter/lacuna/fetcher/inflate"
	"github.com/lacuna-snapshotter/lacuna/fetcher/spans"
)

// layerFigures compares inflate with klauspost's, and index creation with our
// inflate alone.
func layerFigures(ctx context.Context, r *report, path string) error {
	packed, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "lacuna-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	ours := func() error {
		_, err := io.Copy(io.Discard, inflate.NewReader(bytes.NewReader(packed), inflate.Recorder{
			Spacing: spans.DefaultSpacing, Grain: spans.DefaultGrain,
			Point: func(inflate.Point) {}, Stop: func(int64, int64) {},
		}))
		return err
	}
	theirs := func() error {
		z, err := gzip.NewReader(bytes.NewReader(packed))
		if err != nil {
			return err
		}
		_, err = io.Copy(io.Discard, z)
		return err
	}
	create := func() error {
		_, _, err := index.Create(ctx, bytes.NewReader(packed), filepath.Join(dir, "index"), spans.BuildOptions{}, index.Expect{})
		return err
	}
	name := strings.TrimSuffix(filepath.Base(path), ".tar.gz")
	old := runtime.GOMAXPROCS(1)
	t, err := median(7, ours, theirs)
	runtime.GOMAXPROCS(old)
	if err != nil {
		return err
	}
	ratio := float64(t[1]) / float64(t[0])
	r.add("inflate with checkpoints against klauspost/compress/gzip, one core, layer "+name, "at least 1.0 times as fast", ratio >= 1,
		"%.2f times as fast", ratio)
	if t, err = median(7, ours, create); err != nil {
		return err
	}
	ratio = float64(t[1]) / float64(t[0])
	r.add("index creation against that inflate alone, layer "+name, "at most 1.3 times the time", ratio <= 1.3, "%.2f times the time", ratio)
	h, err := func() (*index.Head, error) {
		b, err := os.ReadFile(filepath.Join(dir, "index"))
		if err != nil {
			return nil, err
		}
		return index.DecodeHead(b)
	}()
	if err != nil {
		return err
	}
	return coldFetch(ctx, r, name, packed, h, filepath.Join(dir, "index"))
}

// coldFetch compares fetching one span, verified and laid out, with inflating its bytes
// by hand. Both read from memory: our own work is compared.
func coldFetch(ctx context.Context, r *report, name string, packed []byte, h *index.Head, path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	windows := index.NewWindows(h, f, nil)
	layer := spans.Layer{Map: h.Map, Remote: memory(packed), Windows: windows}
	span := h.Map.Spans() / 2
	first, last := layer.Widen(span, span+1, true)
	var raw inflate.Expander
	ck := 0
	for i, c := range h.Map.Checkpoints {
		if int64(c.Stream) <= h.Map.StreamSize/2 {
			ck = i
		}
	}
	from, to := h.Map.Checkpoints[ck], h.Map.Checkpoints[ck+1]
	window, err := windows.Window(ctx, ck)
	if err != nil {
		return err
	}
	n := int(to.Stream - from.Stream)
	bytesOfSpan := 0
	ours := func() error {
		bytesOfSpan = 0
		return layer.Fetch(ctx, first, last, func(_ int64, b []byte) error { bytesOfSpan += len(b); return nil })
	}
	byHand := func() error {
		data := append(make([]byte, 0, int(to.Bit-from.Bit)/8+inflate.PieceMargin+8), packed[from.Bit/8:to.Bit/8+1]...)
		_, err := raw.Expand(inflate.Piece{Data: data, Skip: int(from.Bit % 8), Window: window}, n)
		return err
	}
	t, err := median(51, ours, byHand)
	if err != nil {
		return err
	}
	perByte := (float64(t[0]) / float64(bytesOfSpan)) / (float64(t[1]) / float64(n))
	// On the line a span costs its round trip and transfer as well.
	const rtt, rate = 20 * time.Millisecond, 200e6 / 8
	wire := rtt.Seconds() + float64(h.Map.Fetched(first, last))/rate
	ratio := (wire + t[0].Seconds()) / (wire + t[1].Seconds())
	r.add("a cold fetch of a span against raw GET plus inflate, layer "+name, "at most 1.5 times", ratio <= 1.5,
		"%.2f times on the slow line (our CPU time a byte: %.2f times inflate alone)", ratio, perByte)
	return nil
}

type memory []byte

// Open implements spans.Remote.
func (m memory) Open(_ context.Context, off, n int64) io.ReadCloser {
	return io.NopCloser(bytes.NewReader(m[off : off+n]))
}
