// Package snapshot is containerd's snapshotter over lazily filled layers. It is
// the only package where erofs, fetcher and ondemand meet.
//
// # Model
//
// A snapshot is either ordinary, a directory that containerd or a container
// writes to, or *lazy*: a committed snapshot that stands for an image layer. A
// lazy snapshot has no files of its own but the name of a [Layer]. A Layer
// exists once for each layer digest, however many images and snapshots share
// it, so its mount and its page cache are shared too. Mounts gives containerd a
// plain overlay, or bind mount, of the directories of both kinds.
//
//	<root>/metadata.db          names, parents, labels: core/snapshots/storage
//	<root>/snapshots/<id>/      fs and work of an ordinary snapshot, or layer,
//	                            a file with the digest, of a lazy one
//	<root>/layers/<hex>/        what a Layer keeps: see layer.go
//	<root>/m/<hex>/             its mountpoint; a small directory with short
//	                            names, for overlay's option limit and because
//	                            containerd clones it for id-mapped mounts
//	<root>/index/               the store of layer indexes
//
// # The contract with containerd
//
// A Prepare that names a layer to be extracted (label containerd.io/snapshot.ref
// and those of pkg/snapshotters) is answered, if the layer has an index, by
// committing a lazy snapshot under the wanted name and returning
// ErrAlreadyExists: containerd then skips the download. If not, it is answered
// like any Prepare and containerd unpacks the layer; the reason is logged and
// kept for lacunactl. No read-only mounts are returned for an extraction:
// containerd 2.4 would take them for a finished one.
//
// Commit only measures and renames. Remove only removes the name; directories
// and layers go in Cleanup, which containerd calls without its lock.
//
// # Failure
//
// A layer that cannot be brought back at start is quarantined: it is reported,
// its snapshots answer ErrUnavailable, and all others work. A later Prepare of
// the same layer tries again.
//
// # Concurrency
//
// All methods may be called concurrently. Preparing the same layer twice at
// once prepares it once.
package snapshot
