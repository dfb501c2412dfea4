// Package index is the artifact that makes a layer random-access: its format,
// how it is created, stored, pushed and found.
//
// # Artifact
//
// An image's index is an OCI image manifest with artifactType [ArtifactType]
// and the image's manifest as its subject, found with the referrers API or the
// tag that stands in for it. It has one entry of type [LayerType] for each gzip
// layer; annotations say which layer, how long the head of that layer's index is and
// what digest the head has. Only the head is needed to mount.
//
// # Index of a layer
//
//	head    fixed part | zstd(bootstrap) | zstd(map)
//	groups  zstd(windows of up to 8 checkpoints), one after the other
//
// The fixed part is little-endian:
//
//	0    8   magic "LACUNAX1"
//	8    4   length of the head
//	12   4   length of the bootstrap, unpacked
//	16   4   length of the bootstrap, packed
//	20   4   length of the map, unpacked
//	24   4   length of the map, packed
//
// The map is made of unsigned varints (encoding/binary) unless noted: layer
// digest and diff ID (32 bytes each), packed, stream and blob size, span size,
// grain; the sections (count, then, each: blob offset less the first 4096-byte
// block behind the last section, as a signed varint; gap in the stream; length); the
// checkpoints (count, then bit offset, stream offset and window flag together, as
// differences); the stops (count, then differences); the
// groups (count, then checkpoints, packed length and 32 bytes of SHA-256 each);
// the span digests (count, then 32 bytes each).
//
// A version that cannot be read gets another magic. Golden files in testdata
// hold the format still.
//
// # Store
//
// A [Store] is a directory with, for a layer sha256:D,
//
//	sha256-D.index           the index, or the head of one from a registry, and then
//	sha256-D.index.source    its origin: where its windows can be fetched
//	sha256-D.dense-S-C-G     the dense index that it was thinned from, made with these
//	                         sizes of spans, checkpoints and stops; never used or pushed
//	sha256-D.prediction      of an image, by its manifest's digest
//	.making-*                a file that is being written, locked by the process that does
//
// # Finding an index
//
// A [Resolver] looks into the store, then asks the image's repository, once for all
// layers of an image, whose heads it fetches together. What a repository has answered
// it remembers: an index for two minutes, that there is none for ten seconds. Where a
// remembered index has been replaced and deleted, it asks once more. A layer that is
// mounted has its index in a store of its own. When that is damaged, another one of the
// same layout is found in the same places ([Resolver.FindFitting]).
//
// # Trust
//
// A manifest is read by digest, its annotation covers the head, the head covers
// the groups and the spans. A client that may push a referrer to the image's
// repository decides what its files hold; the same client may push the image. The
// layer digest in the head must be the one asked for. See ARCHITECTURE.md for what
// follows.
//
// # Concurrency and failure
//
// Decoding bounds every count by the bytes that are there and by the layer's sizes
// before it allocates, and fails with [ErrFormat]. What a head takes is at most 24
// MiB and 32 times its own length, and all heads of the process share 256 MiB while
// they decode. Layers of an artifact that have types of later versions are skipped. A
// [Store] may be used from many goroutines and processes: files appear by rename. All
// else may be used from many goroutines.
package index
