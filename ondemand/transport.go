package ondemand

import (
	"log/slog"
	"sync"
	"time"
)

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
//   - All methods may be called concurrently.
type Transport interface {
	// Name is the transport's name in configuration and logs.
	Name() string
	// Store makes the store that a blob on this transport must have, or nil
	// where that is a file.
	Store(key Key, size, spanSize int64) (Store, error)
	// Attach makes the kernel ask for the blob's holes from now on. It is
	// called before Mount, and for a blob whose mount has outlived an earlier
	// daemon. The bootstrap is a complete file with the metadata of the file
	// system that the blob belongs to.
	Attach(b *Blob, bootstrap string) error
	// Mount mounts an attached blob's file system at target.
	Mount(b *Blob, bootstrap, target string) error
	// Serves reports whether a mount of the blob needs the transport's answers.
	Serves(b *Blob) bool
	// Revive is called for an attached blob with a mount of an earlier daemon,
	// for which nobody has answered since. It has the mount served again, or
	// fails: then the mount must be replaced.
	Revive(b *Blob) error
	// Release says that the blob is complete, and durable: see Blob.Durable. Where
	// the transport can, it makes reads the kernel's own.
	Release(b *Blob) error
	// Detach ends Attach for a blob that nothing mounts any more.
	Detach(b *Blob) error
	// Remove frees what the kernel keeps of a detached and closed blob, and of
	// its file system's bootstrap.
	Remove(key Key) error
	// Recover is called once, when the blobs of all live mounts are attached.
	// Until then requests for others wait. It answers what a dead daemon has
	// left.
	Recover()
	// Drain takes no more requests and waits a while until those taken are
	// answered. What is not, and what comes later, is left for whoever holds
	// the kernel's side after us: from now on a fill that fails is not
	// answered. Close comes next, when the blobs are closed.
	Drain()
	// Close stops taking requests and answers those taken. What the kernel does
	// with later ones is the transport's own matter.
	Close() error
}

// LogFailure logs that a fill failed: its reader gets EIO or, where the server is
// leaving, waits for the next daemon.
func LogFailure(log *slog.Logger, leaving bool, err error, args ...any) {
	args = append(args, "error", err)
	if leaving {
		log.Info("a read is left for the next daemon", args...)
		return
	}
	log.Error("read fails with EIO", args...)
}

// drainTime is how long Drain waits: longer than a fetch takes on a good line,
// shorter than a service manager's patience.
const drainTime = 5 * time.Second

// WaitDrained is Drain's wait for the requests under way.
func WaitDrained(work *sync.WaitGroup) {
	done := make(chan struct{})
	go func() { work.Wait(); close(done) }()
	select {
	case <-done:
	case <-time.After(drainTime):
	}
}
