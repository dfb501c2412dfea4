package cachefiles

import (
	"context"
	"errors"
	"io"

	"github.com/lacuna-snapshotter/lacuna/ondemand"
)

// FileSpan is how much of a local file is filled together, in bytes. The kernel
// asks for metadata page by page.
const FileSpan = 1 << 20

// file is a complete local file as a source.
type file struct {
	r    io.ReaderAt
	size int64
}

// NewFile makes a source of a local file with a size in bytes, for a blob with
// spans of FileSpan.
func NewFile(r io.ReaderAt, size int64) ondemand.Source { return &file{r, size} }

// Fetch implements ondemand.Source.
func (f *file) Fetch(ctx context.Context, first, last int64, put func(int64, []byte) error) error {
	data := make([]byte, FileSpan)
	for span := first; span < last; span++ {
		if err := ctx.Err(); err != nil {
			return err
		}
		off := span * FileSpan
		n := min(FileSpan, f.size-off)
		if _, err := f.r.ReadAt(data[:n], off); err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		if err := put(span, data[:n]); err != nil {
			return err
		}
	}
	return nil
}
