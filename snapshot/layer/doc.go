// Package layer keeps the image layers of a node: their files, their mounts, and how
// they are filled. It is the only package where erofs, fetcher and ondemand meet. It
// knows of snapshots only what Uses tells.
//
// # Model
//
// A [Layer] exists once for each layer digest, however many images and snapshots
// share it, so its mount and its page cache are shared too. A [Set] is all of them.
// On disk a layer is a directory; files.go has its content.
//
// # The life of a layer
//
// A layer is in one of five states ([State]). Every change is a transition made with
// the layer's lifecycle lock held:
//
//	absent --Ensure--> ready
//	ready --evict--> evicted --open--> ready
//	ready --remove--> absent
//	ready --evict, remove--> leaving --open--> ready
//	                         leaving --no process can reach it--> evicted or absent
//	any --a step fails--> quarantined --rebuild--> ready
//
// A ready layer is mounted. It is *filling* while its blob has holes, and *complete*
// when it has none; the transport then releases it, and reads are the kernel's alone.
//
// An evicted layer has no blob and no mount. It is opened again, with an empty blob,
// when a snapshot asks for its mountpoint.
//
// A layer is leaving when our mountpoint is gone and a process can still reach its
// file system: an overlay has its own clone of the mount, and containerd may remove a
// snapshot before the overlay is unmounted. Its blob is served as before. A blob with
// holes is closed only when the kernel says that no superblock or process has the
// bootstrap open (erofs.InUse).
//
// A quarantined layer has files that cannot be used, or none although a snapshot
// stands for it. It is reported, and all others work. It is rebuilt from its index
// when a snapshot asks for its mountpoint, and in the background with growing pauses:
// containerd does not call Prepare again for a chain ID that it has. Where its old
// file system is still mounted, reads of holes in it return EIO.
//
// # Why nothing in use is removed
//
// Before a layer is evicted or removed, its uses are looked up again with the
// lifecycle lock held. That is enough: a Prepare pins the layer under the same lock
// before its snapshot is committed, and a snapshot is committed before its mountpoints
// are asked for, which needs the lock as well. So a transition that finds no pin and
// no snapshot comes before the next user, who then finds the new state and makes the
// layer ready again. The lock is never taken inside a transaction of the metadata.
//
// # On disk
//
// The directory of a layer is whole or absent, whenever the daemon dies or the power
// fails: see package dirs. The snapshot in the metadata is committed after the layer's
// directory is durable.
//
// # Concurrency
//
// All methods may be called concurrently. Preparing a layer twice at once prepares it
// once. One type, work, owns all goroutines: it starts, counts and ends them.
package layer
