// Package snapshot is a remote snapshotter for containerd. It implements
// containerd's contract: names, parents, labels, mounts, user namespaces. What a
// layer is and how its files come is package layer's.
//
// # Model
//
// A snapshot is either ordinary, a directory that containerd or a container writes
// to, or *lazy*: a committed snapshot that stands for an image layer. A lazy
// snapshot has no files of its own. Its labels name the layer, so they exist exactly
// when the snapshot does, also after a loss of power. Mounts returns a plain overlay
// or bind mount of the directories of both kinds.
//
//	<root>/metadata.db      names, parents, labels: core/snapshots/storage
//	<root>/snapshots/<id>/  fs and work of an ordinary snapshot
//
// Package dirs has the other directories.
//
// # The border to package layer
//
// A layer.Set knows one thing about snapshots, layer.Uses: which layers are needed
// and which may be mounted. The Snapshotter asks a set to make a layer ready (Ensure,
// Mountpoint), for its disk usage, and to remove what is not needed (RemoveUnused).
//
// # The contract with containerd
//
// A Prepare that names a layer to be extracted (label containerd.io/snapshot.ref
// and those of pkg/snapshotters) is answered, if the layer has an index and can be
// fetched, by committing a lazy snapshot with that label and the wanted parent,
// and returning ErrAlreadyExists: containerd finds the snapshot by these two
// (core/metadata/snapshot.go) and skips the download. If not, it is answered like
// any other Prepare and containerd unpacks the layer; the reason is logged and kept
// for lacunactl. No read-only mounts are returned for an extraction: containerd 2.4
// would take them for a finished one.
//
// Commit only measures and renames. Remove only removes the name; directories
// and layers are removed by Cleanup, which containerd calls without its lock.
//
// # Failure
//
// A snapshot on a layer that cannot be made ready answers ErrUnavailable; all other
// snapshots work.
//
// # Concurrency
//
// All methods may be called concurrently.
package snapshot
