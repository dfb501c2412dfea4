// Package ondemand fills holes: a reader in the kernel waits for bytes of a
// blob, and somebody has to bring them, once, verified, and answer.
//
// # Model
//
// A [Blob] is a sparse file as large as a layer's virtual blob, cut into spans.
// A span is a hole, in flight, or filled, and never goes back while the blob is
// open. A [Source] brings spans; it has verified them. An [Engine] is the blobs
// of a node under their keys, and the budget of fetches they share.
//
// [Blob.Fill] is all that a transport needs: it returns when a range is filled,
// or with the reason why not. However many readers ask for a span, one fetch
// brings it, and each of them is answered exactly once. Spans that lie together
// are fetched together, with those that the source passes on its way. What
// readers wait for goes before what is filled ahead. A fetch outlives the reader
// that began it while others wait; the last one to give up cancels it.
//
// A [Transport] carries the kernel's requests here and the answers back, in one
// of the kernel's dialects; its contract is written there, and package
// transporttest checks it.
//
// # What is filled, and how we know
//
// Bytes are written to the blob file first, then the span's bit is set in the
// record, so whoever sees the bit finds the bytes. That order holds for a
// process that dies at any instruction, since both are in the page cache by then
// and the kernel outlives us. It does not hold for a machine that loses power.
// Therefore the record of running bits is trusted only under the boot ID that it
// was written in. Beside it is a durable record: the bits as they were before an
// fdatasync of the blob file, written after it under a temporary name, synced
// and renamed. After a reboot only that one counts. A bit in it was set before
// the sync began, so its bytes were written before, so the sync covered them. A
// torn durable record has a wrong checksum and counts as empty; then every span
// is fetched again, into the same places.
//
// # Failure
//
// A failed fill leaves the span a hole, and the next reader tries again. Bytes
// that a source did not verify do not exist here. A full disk fails the fill.
//
// # Concurrency
//
// Everything is safe for concurrent use.
package ondemand
