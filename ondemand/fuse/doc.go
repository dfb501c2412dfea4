// Package fuse carries reads of blobs through FUSE: each blob that is not
// complete is a file of a FUSE file system, and EROFS mounts that file in place
// of the cache file. It fails closed: if no process answers, reads give EIO.
//
// # Model
//
// One FUSE session serves all blobs of the node. A READ is filled through the
// engine and answered from the cache file. go-fuse speaks the protocol; this package
// reads the device, since a session must outlive the daemon, which go-fuse's own loop
// does not provide for. EROFS mounts the file as it is (Linux 6.12) or through loop
// devices, which a kernel before that needs.
//
//	driver.go   opening the transport, new or adopted
//	session.go  the device: mount, read, answer, and what outlives the daemon
//	fs.go       the file system: one directory of blobs
//	loops.go    the loop devices of mounts, and what they read
//	server.go   the transport
//
// # Changing the file below a mount
//
// The kernel can make a read-only loop device read another file of the same size
// (LOOP_CHANGE_FD, made for live systems that move from CD to disk). With it a
// mount changes to the cache file when its blob is complete, while containers
// run on it, and needs the daemon no more. When a session has ended with all that
// held it, the next session gets its mounts in the same way: their reads have given
// EIO and nothing else, so nothing in their page cache is wrong. At its start the
// server asks the kernel which device reads which file.
//
// # Over the daemon's death
//
// The holders (package hold) have the device and an in-flight table (package
// inflight). Requests queue in the kernel. The next daemon gives go-fuse the INIT of
// the session, which is in the table's note, and answers the requests that were read
// and not answered; a second answer to a request does no harm, since no request changes
// anything. Nodes are numbered by their names, so the numbers that the kernel has
// stay valid. A session that was unmounted or aborted cannot be adopted: Failed
// says so, and Alive tells the next daemon.
//
// The daemon's own process makes no FUSE request: killed while one is under way it
// would wait for its own answer, and keep its descriptors from the next daemon. So
// files need no OPEN, and another process looks up, opens and closes each file before
// it is mounted: by then the kernel has the name, and knows that it need not send
// FLUSH.
//
// # What it costs
//
// Where the file itself is mounted, reads pass through the daemon as long as the mount
// lasts, also when the blob has become complete; complete blobs are mounted as
// plain files the next time. EROFS caches what it has read, so each byte passes once.
// A loop device passes reads through one more queue, in order.
//
// Sources: include/uapi/linux/fuse.h, fs/fuse/dev.c and drivers/block/loop.c,
// Linux 6.18.
package fuse
