// Package erofs turns a layer's tar into EROFS metadata, checks such metadata
// and mounts it.
//
// # Model
//
// An image is split in two. The bootstrap holds all metadata: superblock,
// inodes, directories, symlinks, extended attributes. The blob holds the bytes
// of regular files, each starting on a block of 4096 bytes, in the order of the
// tar; EROFS calls it an extra device. The blob is virtual: this package
// decides where in it each byte of the tar belongs, and somebody else supplies
// the bytes when they are wanted.
//
// [ReadTar] makes a [Tree] from a tar, with the rules by which containerd
// applies a layer on overlayfs: the last of equal names wins, names lead
// through symlinks of the layer itself, OCI whiteouts become overlayfs's.
// [Tree.Encode] makes the bootstrap. Both are deterministic: the same tar gives
// the same bytes, on any machine.
//
// [Check] reads a bootstrap that came from elsewhere and refuses what the
// kernel should not be given. [Mount] mounts.
//
// # Concurrency and failure
//
// Nothing here keeps global state; a Tree is for one goroutine. Tars and
// bootstraps are hostile input: names cannot leave the tree, and every length
// and count is bounded by [Limits] before memory is spent on it.
//
// What this package does not do: write file contents, compress, or know of
// registries and snapshots. It cannot express what overlayfs's own tar
// application takes from lower layers: a directory that a layer only implies is
// 0755 root:root, unless [Options.Implied] says otherwise.
//
// The on-disk format is documented in the kernel's fs/erofs/erofs_fs.h.
package erofs
