// Package fanotify carries reads of files that EROFS mounts as devices, by the
// kernel's pre-content events.
//
// # Model
//
// EROFS reads a blob file like any other reader (file-backed mounts, Linux
// 6.12). A mark with FAN_PRE_ACCESS on that file (6.14) makes the kernel ask us
// before each read that misses EROFS's page cache: an event with the range, and
// the reader waits for our answer. We fill the range and allow, or deny with
// EIO. With the mark removed reads are the kernel's own.
//
//	codec.go   the event format, pure
//	group.go   the system calls
//	server.go  one loop that reads events, one goroutine for each
//	left.go    what a dead daemon has left in the journal (package journal)
//
// # Pitfalls, and where they are met
//
//   - The mark must be there before the mount opens the file: Attach comes
//     before the mount.
//   - An overflowing queue would let accesses through unfilled: the group has
//     FAN_UNLIMITED_QUEUE.
//   - Writing a marked file raises events against the writer. A blob is opened
//     before it is marked, and such a descriptor raises none; after a restart it
//     cannot be. So events of our own process are allowed at once. We never read
//     through a mount of ours, and tests read from other processes.
//   - Metadata reads bypass events: the bootstrap is complete before the mount.
//   - When the last descriptor of the group is closed, waiting and later reads
//     are let through, and holes read as zeros. A keeper process holds another
//     descriptor: see package keeper.
//
// # Failure
//
// A request whose file is none of ours any more is denied. Close answers all
// that were taken.
//
// Sources: fs/notify/fanotify/fanotify_user.c and
// include/uapi/linux/fanotify.h, Linux 6.18.
package fanotify
