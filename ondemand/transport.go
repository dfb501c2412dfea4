package ondemand

import (
	"errors"
	"log/slog"
	"sync"
	"time"
)

// ErrBusy says that a blob cannot be detached: a file system of it can still be
// read.
var ErrBusy = errors.New("its file system is still in use")

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
	// Backing makes the backing that a blob on this transport must have, or nil
	// where that is a file.
	Backing(key Key, size, spanSize int64) (Backing, error)
	// Attach makes the kernel ask for the blob's holes from now on. It is
	// called before Mount, and for a blob whose mount has outlived an earlier
	// daemon. The bootstrap is a complete file with the metadata of the file
	// system that the blob belongs to.
	Attach(b *Blob, bootstrap string) error
	// Mount mounts an attached blob's file system at target.
	Mount(b *Blob, bootstrap, target string) error
	// Serves reports whether a mount of the blob needs the transport's answers, now
	// or, where it is complete but not durable, if the disk loses some of it.
	Serves(b *Blob) bool
	// Revive is called for an attached blob with a mount of an earlier daemon,
	// for which nobody has answered since. It has the mount served again, or
	// fails: then the mount must be replaced.
	Revive(b *Blob) error
	// Release says that the blob is complete, and durable: see Blob.Durable. Where
	// the transport can, it makes reads the kernel's own.
	Release(b *Blob) error
	// Detach ends Attach. As long as anybody can reach a file system of the blob
	// that needs the transport's answers, it changes nothing and fails with
	// ErrBusy: unmounting its mountpoint does not end that, since overlays have
	// clones of the mount, and processes open files. The blob is served on; the
	// caller keeps it open, and its bootstrap in its place, and comes again later
	// or mounts it again. It does so too where it cannot tell. The caller mounts
	// nothing of the blob meanwhile. Detaching what is not attached is no error.
	Detach(b *Blob) error
	// Remove frees what the kernel keeps of a detached and closed blob, and of
	// its file system's bootstrap.
	Remove(key Key) error
	// Recover is called once, when the blobs of all live mounts are attached.
	// Until then requests for others wait. It has what a dead daemon has left
	// answered, which may take long, and does not wait for that.
	Recover()
	// Needed reports whether reads may still come that need an answer, or waits
	// for one: by what the kernel has, of attached blobs and of others. Whoever
	// holds the kernel's side must not let go of it as long as it says so.
	Needed() bool
	// Failed gets the reason once the transport can take no more requests for
	// good. The process must end then, for another to take over: until one does,
	// readers wait.
	Failed() <-chan error
	// Drain takes no more requests and waits a while until those taken are
	// answered. What is not, and what comes later, is left for whoever holds
	// the kernel's side after us: from now on a fill that fails is not
	// answered. Close comes next, when the blobs are closed.
	Drain()
	// Close stops taking requests and answers those taken, but before Recover:
	// then they, too, are left. What the kernel does with later ones is the
	// transport's own matter.
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
