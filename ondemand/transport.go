package ondemand

// Transport connects readers in the kernel to blobs. Its kinds are packages of
// their own; all pass package transporttest.
//
// The contract:
//
//   - A reader that touches a hole of an attached blob waits until Blob.Fill has
//     returned for it, then reads the blob's bytes; after an error it gets EIO,
//     and a later read tries again. It never reads zeros in a hole's place.
//   - Every request of the kernel is answered exactly once, also while the blob
//     is detached or the transport closed.
//   - After Release reads are the kernel's own.
//   - All methods may be called concurrently.
type Transport interface {
	// Name is the transport's name in configuration and logs.
	Name() string
	// Attach makes the kernel ask for the blob's holes from now on. It is
	// called before a mount opens the blob's file, and again for a blob whose
	// mount has outlived an earlier daemon.
	Attach(b *Blob) error
	// Release ends that for a blob that is complete.
	Release(b *Blob) error
	// Detach ends that for a blob that nothing mounts any more.
	Detach(b *Blob) error
	// Close stops taking requests and answers those taken. What the kernel does
	// with later ones is the transport's own matter.
	Close() error
}
