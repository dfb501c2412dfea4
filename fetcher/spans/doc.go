// Package spans gives verified random access to the files of a remote layer.
//
// # Model
//
// Three spaces of offsets meet here. A *packed* offset counts bytes of the
// layer as the registry has it; a *stream* offset counts bytes of the tar
// inside; a *blob* offset counts bytes of the virtual blob that EROFS reads, in
// which every file starts on a block (package erofs). A [Map] leads from one to
// the next: sections from blob to stream, checkpoints and stops from stream to
// packed.
//
// The blob is cut into *spans* of equal size, the unit that is verified and
// filled. A [Layer] brings spans: it finds the checkpoint before them, gets the
// packed range up to the stop behind them in one request, inflates while the
// bytes arrive, lays the files out as the blob has them and compares each
// span's digest. Only then does it pass a span on. On the way from the checkpoint
// it passes spans that were not asked for; [Layer.Grow] tells which, so that they
// can be kept.
//
// [Build] makes bootstrap, map and windows from a whole layer in one pass, and
// checks the layer's digest and diff ID while it does.
//
// # Concurrency and failure
//
// A Layer may be used from many goroutines and keeps nothing between calls but its
// map and how often readers have missed in which file. A span is passed on whole and verified, or there is an error: of the
// registry, of the deflate data, or [*DigestError]. Nothing is retried here but
// wrong bytes, where the remote has another place to read them: see [Rejecter].
//
// Memory is one span, one segment between two checkpoints and its compressed
// form for each call, and the map once. A segment's bounds are checked before
// memory is taken for it; segments above 16 MiB share one budget of the process.
//
// This package does not cache or know of kernels. It advises what to fetch together,
// in readahead.go; its user decides.
package spans
