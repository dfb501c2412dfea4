package spans

import (
	"context"
	"fmt"
	"io"
)

// Remote is the packed layer. Open's reader gives exactly n bytes from off or
// an error; it is closed by the caller and lives no longer than ctx.
type Remote interface {
	Open(ctx context.Context, off, n int64) io.ReadCloser
}

// Windows gives the window of a checkpoint by its number in the map:
// inflate.WindowSize bytes, which the caller does not change.
type Windows interface {
	Window(ctx context.Context, checkpoint int) ([]byte, error)
}

// DigestError says that a span's bytes are not those that the index promises.
type DigestError struct {
	Layer     string
	Span      int64
	From, To  BlobOffset
	Got, Want Digest
}

func (e *DigestError) Error() string {
	return fmt.Sprintf("layer %s: blob bytes [%d,%d) have digest %x, the index says %x: the layer or its index is damaged (make the index again with lacunactl index create)",
		e.Layer, e.From, e.To, e.Got[:6], e.Want[:6])
}

// Layer is random access to a gzip layer with an index.
type Layer struct {
	Map     *Map
	Remote  Remote
	Windows Windows

	misses misses
}
