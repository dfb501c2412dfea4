package index

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"

	"github.com/lacuna-snapshotter/lacuna/fetcher/inflate"
	"github.com/lacuna-snapshotter/lacuna/fetcher/spans"
)

// Expect is what a layer must turn out to be. Empty fields are not checked.
type Expect struct {
	Layer  digest.Digest
	DiffID digest.Digest
}

// Create reads a whole gzip layer and writes its index to path, by rename. It
// returns the head and, for the caller's use, what the layer was built into.
func Create(ctx context.Context, packed io.Reader, path string, opts spans.BuildOptions, want Expect) (*Head, *spans.Built, error) {
	return create(ctx, packed, path, opts, want.check)
}

// create is Create with a check of what was built, before anything is at path.
func create(ctx context.Context, packed io.Reader, path string, opts spans.BuildOptions, check func(*spans.Map) error) (h *Head, built *spans.Built, err error) {
	// Windows are packed beside inflate, and must not hold it up.
	err = writeIndex(path, levels{head: zstd.SpeedBetterCompression, windows: zstd.SpeedDefault}, func(w *groupWriter) (*Head, error) {
		if built, err = spans.Build(ctx, packed, opts, w.add); err != nil {
			return nil, err
		}
		h = &Head{Map: built.Map, Bootstrap: built.Bootstrap}
		return h, check(built.Map)
	})
	return h, built, err
}

// levels are how hard the parts of an index are compressed.
type levels struct{ head, windows zstd.EncoderLevel }

// writeIndex writes an index file, by rename. Create adds the windows to w and
// returns the rest; the head's groups are filled in.
func writeIndex(path string, l levels, create func(w *groupWriter) (*Head, error)) error {
	enc, err := newEncoder(l.head)
	if err != nil {
		return err
	}
	defer enc.Close()
	windows, err := newEncoder(l.windows)
	if err != nil {
		return err
	}
	defer windows.Close()
	groups, err := newTemp(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer groups.Close()
	if err := os.Remove(groups.Name()); err != nil { // it needs no name
		return err
	}

	w := &groupWriter{enc: windows, out: groups}
	h, err := create(w)
	if err != nil {
		return err
	}
	if err := w.cut(len(h.Map.Checkpoints)); err != nil {
		return err
	}
	h.Groups = w.groups
	head := encodeHead(h, enc)
	if _, err := groups.Seek(0, io.SeekStart); err != nil {
		return err
	}
	return writeFile(path, head, groups)
}

// encoderWindow bounds what an encoder remembers, in bytes, and so its memory,
// which is several times that. A larger one makes the index of a Debian layer no
// smaller.
const encoderWindow = 1 << 20

func newEncoder(level zstd.EncoderLevel) (*zstd.Encoder, error) {
	return zstd.NewWriter(nil, zstd.WithEncoderLevel(level), zstd.WithEncoderConcurrency(1),
		zstd.WithWindowSize(encoderWindow), zstd.WithLowerEncoderMem(true))
}

func (e Expect) check(m *spans.Map) error {
	if e.Layer != "" && e.Layer != m.Layer {
		return fmt.Errorf("layer has digest %s, expected %s", m.Layer, e.Layer)
	}
	if e.DiffID != "" && e.DiffID != m.DiffID {
		return fmt.Errorf("layer %s has diff ID %s, the image's configuration says %s", m.Layer, m.DiffID, e.DiffID)
	}
	return nil
}

// groupWriter packs windows into groups of up to groupSize checkpoints.
type groupWriter struct {
	groups []Group
	enc    *zstd.Encoder
	out    io.Writer
	first  int    // checkpoint that the group in the making begins with
	raw    []byte // its windows
}

// add takes the window of a checkpoint; those without one are not reported.
func (w *groupWriter) add(checkpoint int, window []byte) error {
	if checkpoint-w.first >= groupSize {
		if err := w.cut(checkpoint); err != nil {
			return err
		}
	}
	w.raw = append(w.raw, window...)
	return nil
}

// cut ends the group in the making before a checkpoint. Those between its last
// window and there have none, and fill groups of their own where they are many.
func (w *groupWriter) cut(before int) error {
	for w.first < before {
		packed := w.enc.EncodeAll(w.raw, nil)
		w.raw = w.raw[:0]
		g := Group{First: w.first, Count: min(groupSize, before-w.first), Len: int64(len(packed)), Digest: sha256.Sum256(packed)}
		w.groups = append(w.groups, g)
		w.first += g.Count
		if _, err := w.out.Write(packed); err != nil {
			return err
		}
	}
	return nil
}

// unpackGroup returns the windows of a group, the whole of packed verified.
func (h *Head) unpackGroup(g Group, packed []byte) (windows [][]byte, err error) {
	if sha256.Sum256(packed) != g.Digest {
		return nil, fmt.Errorf("%w: windows of checkpoints [%d,%d) have another digest", ErrFormat, g.First, g.First+g.Count)
	}
	n := 0
	for _, c := range h.Map.Checkpoints[g.First : g.First+g.Count] {
		if c.Window {
			n++
		}
	}
	raw, err := unpack(packed, int64(n*inflate.WindowSize))
	if err != nil {
		return nil, err
	}
	windows = make([][]byte, g.Count)
	for i, c := range h.Map.Checkpoints[g.First : g.First+g.Count] {
		if c.Window {
			windows[i], raw = raw[:inflate.WindowSize:inflate.WindowSize], raw[inflate.WindowSize:]
		}
	}
	return windows, nil
}

// replace is writeFile for what is in memory.
func replace(path string, b []byte) error { return writeFile(path, b, bytes.NewReader(nil)) }
