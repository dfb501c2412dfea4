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
//	attach.go  which files are ours: marks, mounts, and when a mark may go
//	server.go  one loop that reads events, one goroutine for each
//	left.go    what a dead daemon has left in the in-flight table (package inflight)
//
// # Pitfalls, and where they are met
//
//   - The mark must be there before the mount opens the file: Attach comes
//     before the mount.
//
//   - An overflowing queue would let accesses through unfilled: the group has
//     FAN_UNLIMITED_QUEUE.
//
//   - Writing a marked file raises events against the writer. A blob is opened
//     before it is marked, and such a descriptor raises none; after a restart it
//     cannot be. So events of our own process are allowed at once. We never read
//     through a mount of ours, and tests read from other processes.
//
//   - Metadata reads bypass events: the bootstrap is complete before the mount.
//
//   - When the last descriptor of the group is closed, waiting and later reads
//     are let through, and holes read as zeros. A keeper process holds another
//     descriptor: see package keeper.
//
//   - Without its mark a hole reads as zeros, also through what nobody sees: an
//     overlay's clone of a mount that is unmounted. Detach asks erofs.InUse.
//
//   - Answers go by the number of the event's descriptor, to the eldest event of it.
//     So the numbers of a dead daemon's events are reserved, each until those are
//     answered, which may take as long as a registry is down. A number that was ours
//     when we started cannot be: an event of a reader that gets it waits, one of our
//     own writes waits a little and then has the dead events fail, since their fill may be
//     what wrote.
//
//   - A fill's event comes behind those of all readers that wait, so the loop reads on
//     however many do: the in-flight table grows.
//
// # Failure
//
// A request whose file is none of ours any more is denied. Where the kernel can make
// no descriptor for an event, it denies that itself and the read fails; the loop goes
// on. Close answers all that were taken, but before Recover.
//
// Sources: fs/notify/fanotify/fanotify_user.c and
// include/uapi/linux/fanotify.h, Linux 6.18.
package fanotify
