// Package hold lets mounts and sockets outlive the daemon. The kernel keeps a reader
// waiting as long as some process has a descriptor of what the reader waits on: the
// fanotify group, the FUSE or cachefiles device. So other processes hold duplicates of
// the daemon's descriptors, and the next daemon answers the reader.
//
//	holder.go    what a holder is
//	holders.go   Holders: all of a daemon's holders, adopted and used as one
//	keeper.go    RunKeeper, the life of a keeper process
//	client.go    the daemon's end of one keeper
//	protocol.go  the packets between them
//	replace.go   starting keepers that are missing or have died
//	manager.go   the service manager's descriptor store
//	anchor.go    the anchor, which SIGKILL does not end
//	freezer.go   the cgroup that makes it so
//
// Package inflight, below this one, has the requests that a dead daemon had read and
// not answered. Package socket is a listening socket that outlives the daemon.
//
// # Vocabulary
//
// A holder holds descriptors under labels while no daemon runs. The daemon holds a
// descriptor: it gives a duplicate to every holder. The next daemon adopts what is
// held. A daemon that stops leaves, and the holders hold on; or it releases what they
// hold, and the holders that are processes end.
//
// # Protocol
//
//  1. A daemon locks its root directory, so there is one at a time.
//  2. It adopts: it gets duplicates of what the holders hold, and starts the keepers
//     that are missing. If what it has got is enough to serve the mounts of the daemon
//     before it, it opens the transport from it; otherwise it releases it, and no
//     reader waits for requests that nothing will answer.
//  3. A daemon that has adopted nothing opens a new transport and holds its
//     descriptors when it serves, in order: the in-flight table first, the device or
//     group that readers wait on last. The next daemon finds both, or the device
//     is not held. If a descriptor cannot be held the daemon releases those of this
//     transport before it tries another, and does not start if that fails: the next
//     daemon would adopt a transport that serves nothing.
//  4. It starts the anchor, which ends those of earlier daemons.
//  5. It mounts layers and answers readers. It replaces each keeper that dies with one
//     that holds the same, in the same order.
//  6. It leaves while the kernel may have a reader who needs an answer, by
//     ondemand.Transport's Needed and by the layers that it knows. It releases
//     everything only where neither needs it.
//
// # Why a reader never sees zeros
//
// A hole of a marked file reads as zeros when the fanotify group has no descriptor left:
// that transport fails open. (FUSE and cachefiles fail closed, with EIO. So the same
// holders keep an error away there.) Before the first mount is made the group is held
// by the daemon, the keepers, and the anchor, so whatever process dies, it is enough
// that one of these is left:
//
//   - The daemon dies: the keepers hold the group and readers wait.
//   - Keepers die, one or all: the daemon holds the group, and starts others.
//   - The daemon and some keepers die: another keeper holds the group. The next daemon
//     starts those that are missing before it serves.
//   - The daemon and all keepers are killed at once: the anchor holds the group. It is
//     frozen and SIGKILL does not end it, so there is no order of kills, and no set of
//     killed processes, after which it is gone. The service manager's store, where
//     there is one, ends with the machine only.
//   - A daemon dies while it starts: steps 2 to 4 only add holders. The new anchor is
//     frozen before the earlier ones are ended.
//   - A request that the dead daemon had read: its reader waits on, since the group
//     lives. It is in the in-flight table, into which the kernel wrote it. The next
//     daemon fills the range before it answers.
//
// What is not covered: where no anchor can be (Anchor says why) and no service manager
// holds descriptors, a kill of the daemon and all keepers at the same moment closes
// the group. The next daemon notices that it has adopted nothing, mounts
// the layers again, and names the containers that may have read zeros (package
// snapshot, Unserved).
//
// # Holders
//
// A keeper is the daemon's own binary, started with a subcommand, in a session of its
// own so that no signal for the daemon's terminal or process group reaches it. It
// listens on a Unix socket of mode 0600, and never reads from what it holds. A keeper
// that does not answer within a few seconds counts as dead. When another holds
// what it held it is told to end, which it does as soon as it runs again; one that does
// not answer when a daemon starts is left, since it may hold more than the others.
//
// The service manager's descriptor store gives descriptors back when it starts the next
// daemon. It does not hold labels that are too long or have a colon.
//
// An anchor is a process that inherits the descriptors and is then frozen, for good, in
// a version 1 freezer cgroup. It does not answer; the next daemon copies what it holds
// with pidfd_getfd(2). Its command line has its labels, which are fixed. So descriptors
// that come and go, such as cachefiles' objects, are held by the other holders only.
// There is no anchor without that cgroup, nor in a PID namespace other than the
// machine's, whose end would wait for the frozen process.
//
// # Concurrency
//
// Holders is safe for concurrent use.
package hold
