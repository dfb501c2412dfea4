// Package snapshot is containerd's snapshotter over lazily filled layers. It is
// the only package where erofs, fetcher and ondemand meet.
//
// # Model
//
// A snapshot is either ordinary, a directory that containerd or a container
// writes to, or *lazy*: a committed snapshot that stands for an image layer. A
// lazy snapshot has no files of its own. Its labels name the layer, so they are
// there exactly when the snapshot is. A [Layer] exists once for each layer
// digest, however many images and snapshots share it, so its mount and its page
// cache are shared too. Mounts gives containerd a plain overlay, or bind mount,
// of the directories of both kinds.
//
//	<root>/metadata.db          names, parents, labels: core/snapshots/storage
//	<root>/snapshots/<id>/      fs and work of an ordinary snapshot
//	<root>/layers/<name>/       what a Layer keeps on disk: see files.go
//	<root>/snapshots/m/<hex>/   its mountpoint; short, for overlay's option limit.
//	                            For id-mapped mounts containerd clones what the
//	                            lower directories have in common: snapshots or m
//	<root>/new/                 directories that are being made
//	<root>/trash/               directories that nothing refers to any more
//	<root>/index/               the store of layer indexes
//	<root>/unserved.json        layers that were not served: see Unserved
//	<root>/abandoned            mounts are not to be believed: see Abandon
//
// # The life of a layer
//
// All that happens to a layer is a transition in life.go, made by whoever holds
// the layer's lifecycle lock:
//
//	absent --make--> ready --release--> ready, complete: the kernel's alone
//	ready --evict--> evicted --open--> ready
//	ready --remove--> absent
//	ready --evict, remove--> leaving --open--> ready
//	                         leaving --nobody can reach it--> evicted or absent
//	any --a step fails--> quarantined --make--> ready
//
// A layer is *leaving* when our mountpoint is gone and somebody can still reach
// its file system: an overlay has its own clone of the mount, and containerd may
// remove a snapshot before the overlay is unmounted. Its blob is served as before.
// A blob with holes is let go only when the kernel says that nobody has the
// bootstrap open (erofs.InUse).
//
// Before anything is taken away, use is looked up again, with the lifecycle lock
// held. That is enough: a Prepare pins the layer under the same lock before its
// snapshot is committed, and a snapshot is committed before its mountpoints are
// asked for, which needs the lock as well. So whoever finds no pin and no
// snapshot comes before the next user, who then finds what has become of the
// layer and makes or opens it again. The lock is never taken inside a transaction
// of the metadata.
//
// # On disk
//
// A directory is made under new/, synced, and renamed; it is taken away by a
// rename to trash/, and deleted there. So a name either leads to a whole directory
// or to none, whenever the daemon dies or the power fails. A start moves what it
// finds under new/ to trash/. What is in trash/ is deleted when nobody can reach
// it. The snapshot in the metadata comes after the layer's directory is durable.
//
// # The contract with containerd
//
// A Prepare that names a layer to be extracted (label containerd.io/snapshot.ref
// and those of pkg/snapshotters) is answered, if the layer has an index and can be
// fetched, by committing a lazy snapshot with that label and the wanted parent,
// and returning ErrAlreadyExists: containerd finds it by these two
// (core/metadata/snapshot.go) and skips the download. If not, it is answered
// like any Prepare and containerd unpacks the layer; the reason is logged and
// kept for lacunactl. No read-only mounts are returned for an extraction:
// containerd 2.4 would take them for a finished one.
//
// Commit only measures and renames. Remove only removes the name; directories
// and layers go in Cleanup, which containerd calls without its lock.
//
// # Failure
//
// A layer that cannot be brought back is quarantined: it is reported, its
// snapshots answer ErrUnavailable, and all others work. It is made again from its
// index by whoever asks for its mountpoint next, and in the background with
// growing pauses: containerd does not call Prepare again for a chain ID that it
// has. Where its old file system is still mounted somewhere, holes in it are EIO.
//
// # Concurrency
//
// All methods may be called concurrently. Preparing the same layer twice at
// once prepares it once.
package snapshot
