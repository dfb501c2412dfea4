// Package fanotify carries reads of files that EROFS mounts as devices, by the
// kernel's pre-content events.
//
// # Model
//
// EROFS reads a blob file like any other reader (file-backed mounts, Linux
// 6.12). A mark with FAN_PRE_ACCESS on that file (6.14) makes the kernel send an
// event with the range before each read that misses EROFS's page cache, and the
// reader waits for the answer. The server fills the range and allows the read, or
// denies it with EIO. With the mark removed reads are the kernel's own.
//
//	driver.go  opening the transport, new or adopted
//	codec.go   the event format, pure
//	group.go   the system calls
//	attach.go  attached blobs: marks, mounts, and when a mark may be removed
//	server.go  one loop that reads events, one goroutine for each
//	left.go    what a dead daemon has left in the in-flight table (package inflight)
//	number.go  answering it, and new events with the same descriptor numbers
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
//     cannot be. So events of the daemon's own process are allowed at once. The
//     daemon never reads through its own mounts, and tests read from other processes.
//
//   - Metadata reads bypass events: the bootstrap is complete before the mount.
//
//   - When the last descriptor of the group is closed, the kernel allows waiting and
//     later reads, and holes read as zeros. So holders have the group too: see
//     package hold, which has the argument why that is enough.
//
//   - Without its mark a hole reads as zeros, also through mounts that no mount table
//     shows, such as an overlay's clone of a mount that was unmounted. Detach asks
//     erofs.InUse.
//
//   - The kernel matches an answer with the oldest event that has the answer's
//     descriptor number. So the server reserves the numbers of a dead daemon's
//     events, each until those are answered, which may take as long as a registry is
//     down. A number that was in use when the daemon started cannot be reserved. If a
//     new event gets it, its reader waits; if the event is of a write of the daemon's
//     own, that waits a little and then denies the dead events, since their fill may
//     be what wrote.
//
//   - A fill's event comes behind those of all readers that wait, so the loop reads on
//     however many do: the in-flight table grows.
//
// # Failure
//
// A request for a file that is not attached is denied. If the kernel can make no
// descriptor for an event, it denies the event itself and the read fails; the loop
// goes on. Close answers all events that were read; before Recover it leaves them for
// the next daemon.
//
// Sources: fs/notify/fanotify/fanotify_user.c and
// include/uapi/linux/fanotify.h, Linux 6.18.
package fanotify
