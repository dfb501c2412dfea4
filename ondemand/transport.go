package ondemand

import (
	"errors"
	"fmt"
)

// ErrBusy says that a blob cannot be detached: a file system of it can still be
// read.
var ErrBusy = errors.New("its file system is still in use")

// Busy is Detach's error for a blob whose file system is in use, or for which that
// cannot be told, for a reason.
func Busy(b *Blob, reason error) error {
	return fmt.Errorf("detach %s: %w", b.Key(), errors.Join(ErrBusy, reason))
}

// Transport connects readers in the kernel to blobs. Its kinds are packages of
// their own; all pass package transporttest. What only some can do are optional
// interfaces: Backer, Reviver and Releaser.
//
// The contract:
//
//   - A reader that touches a hole of an attached blob waits until Blob.Fill has
//     returned for it, then reads the blob's bytes; after an error it gets EIO,
//     and a later read tries again. It never reads zeros in a hole's place.
//   - Every request of the kernel is answered exactly once, also while the blob
//     is detached or the transport closed.
//   - All methods may be called concurrently.
type Transport interface {
	// Name is the transport's name in configuration and logs.
	Name() string
	// Attach makes the kernel ask for the blob's holes from now on. It is
	// called before Mount, and for a blob whose mount has outlived an earlier
	// daemon. The bootstrap is a complete file with the metadata of the file
	// system that the blob belongs to.
	Attach(b *Blob, bootstrap string) error
	// Mount mounts an attached blob's file system at target.
	Mount(b *Blob, bootstrap, target string) error
	// Serves reports whether a mount of the blob needs the transport's answers, now
	// or, where the blob is complete but not durable, if the disk loses some of it.
	Serves(b *Blob) bool
	// Detach ends Attach. As long as a file system of the blob that needs the
	// transport's answers can be read, it changes nothing and fails with
	// ErrBusy: unmounting its mountpoint does not end that, since overlays have
	// clones of the mount, and processes open files. The blob is served on; the
	// caller keeps it open, and its bootstrap in its place, and calls again later
	// or mounts it again. It fails so too when it cannot tell. The caller mounts
	// nothing of the blob meanwhile. Detaching what is not attached is no error.
	Detach(b *Blob) error
	// Recover is called once, when the blobs of all live mounts are attached.
	// Until then requests for others wait. It starts to answer what a dead daemon
	// has left, and returns before that is done, which may take long.
	Recover()
	// Needed reports whether reads may still come that need an answer, or one waits
	// for it: by what the kernel has, of attached blobs and of others. As long as it
	// is true the descriptors of the transport must be held.
	Needed() bool
	// Failed gets the reason when the transport can take no more requests for
	// good. The process must end then, for the next daemon to adopt what is held; until
	// then readers wait.
	Failed() <-chan error
	// Drain takes no more requests and waits a while until those taken are
	// answered. The others, and those that come later, are left for the next
	// daemon: from now on a request that cannot be filled is not answered. Close
	// comes next, when the blobs are closed.
	Drain()
	// Close stops taking requests and answers those taken; before Recover it leaves
	// them for the next daemon. What the kernel does with later ones depends on the
	// transport.
	Close() error
}

// Backer is a transport that keeps blobs' bytes in a place of the kernel's. Other
// transports' blobs are files at BlobConfig.Path.
type Backer interface {
	// Backing makes the backing that a blob on this transport must have.
	Backing(key Key, size, spanSize int64) (Backing, error)
	// Remove frees what the kernel keeps of a detached and closed blob, and of
	// its file system's bootstrap.
	Remove(key Key) error
}

// NewBacking makes the backing for a blob on a transport, nil where that is a file.
func NewBacking(t Transport, key Key, size, spanSize int64) (Backing, error) {
	if t, ok := t.(Backer); ok {
		return t.Backing(key, size, spanSize)
	}
	return nil, nil
}

// Remove frees what the kernel keeps of a detached and closed blob on a transport.
func Remove(t Transport, key Key) error {
	if t, ok := t.(Backer); ok {
		return t.Remove(key)
	}
	return nil
}

// Reviver is a transport that can serve a mount again for which no daemon and no
// holder was there for some time.
type Reviver interface {
	// Revive has the mount of an attached blob served again, or fails.
	Revive(b *Blob) error
}

// Revive has a mount served again, of an earlier daemon, for which requests were not
// answered since. After an error the mount must be replaced.
func Revive(t Transport, b *Blob) error {
	if t, ok := t.(Reviver); ok {
		return t.Revive(b)
	}
	return fmt.Errorf("a mount of transport %s ends with the last holder of its device", t.Name())
}

// Releaser is a transport that can make the reads of a blob without holes the
// kernel's own.
type Releaser interface {
	// Release is called for a blob that is complete.
	Release(b *Blob) error
}

// Release tells a transport that a blob is complete, and durable: see Blob.Durable.
// Where the transport can, it makes reads the kernel's own.
func Release(t Transport, b *Blob) error {
	if !b.Complete() {
		return fmt.Errorf("release of %s: it has holes", b.Key())
	}
	if t, ok := t.(Releaser); ok {
		return t.Release(b)
	}
	return nil
}
