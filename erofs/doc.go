// Package erofs turns a layer's tar into EROFS metadata, checks such metadata
// and mounts it.
//
// # Model
//
// An image is split in two. The bootstrap holds all metadata: superblock,
// inodes, directories, symlinks, extended attributes. The blob holds the bytes
// of regular files, each starting on a block of 4096 bytes, in the order of the
// tar; EROFS calls it an extra device. The blob is virtual: this package
// decides where in it each byte of the tar belongs; the caller supplies the bytes
// when they are read.
//
// [ReadTar] makes a [Tree] from a tar, with the rules by which containerd
// applies a layer on overlayfs: the last of equal names wins, names lead
// through symlinks of the layer itself, OCI whiteouts become overlayfs's.
// [Tree.Encode] makes the bootstrap. Both are deterministic: the same tar gives
// the same bytes, on any machine.
//
// [Check] reads a bootstrap that came from elsewhere and refuses one that the kernel
// should not read; its comment has a table of all that the kernel reads. [Mount],
// [MountLoop] and [MountFscache] mount; [InUse] tells whether a mount is still used.
//
// # Concurrency and failure
//
// Nothing here keeps global state; a Tree or an Image is for one goroutine. Tars
// and bootstraps are hostile input: names cannot leave the tree, every length
// and count is bounded before memory is spent on it, and what a tar or a
// bootstrap may cost grows with its size. One of 1 MiB costs less than 64 MiB.
//
// Errors about invalid input match [ErrInvalid]; containerd's own apply fails there
// too. Errors that match [ErrUnsupported] are about layers that containerd may be able
// to unpack: the caller leaves these to containerd.
//
// What this package does not do: write file contents, compress, or know of
// registries and snapshots. Where containerd's apply uses information that is not in
// the tar, the result here differs:
//
//   - A directory that the layer only implies is 0755 root:root, in a directory
//     with set-group-ID of that one's group, unless [Options.Implied] says
//     otherwise; its time is 1970 or as Implied says, not that of the unpacking.
//     The same goes for the times of whiteouts, which are those of their entries.
//   - Whiteouts are kept in a first layer too, where containerd drops them since
//     they hide nothing. In a directory that no other layer has, they are listed as
//     names that cannot be opened, as in every other layer.
//   - Attributes that a filesystem may not store are kept, such as security.selinux
//     where another security module is active.
//
// The on-disk format is documented in the kernel's fs/erofs/erofs_fs.h.
package erofs
