// Package inflate decodes gzip and can start in the middle.
//
// # Model
//
// A gzip layer is one long stream: byte n of the tar needs everything before
// it. Deflate blocks break that chain. At the start of a block the decoder's
// whole state is a bit offset into the compressed input and the last 32 KiB of
// output, the window. A [Point] is that pair, which an index keeps as a checkpoint,
// and an [Expander] decodes from one. A [Reader] decodes a whole stream and hands out points as it goes.
//
// Windows are sparse: of the 32 KiB only those bytes are kept that the stream
// after the point really refers to, and the others are zeroed. The decode
// is the same, and the window compresses to about a tenth.
//
// Between points a Reader reports stops: how many compressed bytes are
// enough to produce the stream up to a given offset. They cost two bytes in an
// index and let a fetch end early.
//
// # What is accepted
//
// RFC 1951 and RFC 1952 as compress/flate and compress/gzip accept them:
// several members, empty stored blocks, all header fields. A Reader checks the
// CRC-32 and length of every member. An Expander cannot, for it does not see whole
// members: its caller verifies a digest of the result.
//
// # Concurrency and failure
//
// A Reader and an Expander are each for one goroutine. No input
// makes them panic, loop, or allocate more than the caller's limits; corrupt
// input is [ErrCorrupt], short input is io.ErrUnexpectedEOF.
//
// This package knows nothing of tar, layers or networks.
package inflate
