// Package fuse carries reads of blobs through FUSE: each blob that is not
// complete is a file of a FUSE file system, and EROFS mounts that file in place
// of the cache file. It fails closed: with nobody to answer,
// reads give EIO.
//
// # Model
//
// One FUSE session serves all blobs of the node. A READ is filled through the
// engine and answered from the cache file. go-fuse speaks the protocol; the
// device is read here, since a session must outlive the daemon, which go-fuse's
// own loop does not provide for. EROFS mounts the file as it is (Linux 6.12) or
// through loop devices, which a kernel before that needs.
//
//	session.go  the device: mount, read, answer, and what outlives us
//	fs.go       the file system: one directory of blobs
//	loops.go    the loop devices of mounts, and what they read
//	server.go   the transport
//
// # Changing the file below a mount
//
// The kernel can have a read-only loop device read another file of the same size
// (LOOP_CHANGE_FD, made for live systems that move from CD to disk). With it a
// mount goes over to the cache file when its blob is complete, while containers
// run on it, and needs us no more. And when a session has ended with all who held
// it, the next one takes its mounts over: they have read EIO and nothing else, so
// nothing in their page cache is wrong. Which device reads what is asked of the
// kernel at the start.
//
// # Over the daemon's death
//
// A keeper holds the device and an in-flight table (package inflight). Requests queue in
// the kernel. The successor tells go-fuse the INIT of the session, which the
// table's note has, and answers the requests that were read and not answered:
// all of them only look. Nodes are numbered by their names, so that the kernel's
// numbers stay good. A session that was unmounted or aborted cannot be taken over:
// Failed tells, and Alive tells the next daemon.
//
// Our own process makes no FUSE request: killed in the midst of one it would
// wait for its own answer, and keep its descriptors from the next daemon. So
// files need no OPEN, and another process looks up, opens and closes each before it
// is mounted: by then the kernel knows the name, and that it need not ask for
// FLUSH.
//
// # What it costs
//
// Where the file itself is mounted, a read passes the daemon as long as the mount
// lasts, also when the blob has become complete; complete blobs are mounted as
// plain files the next time. EROFS caches what it has read, so a byte passes once.
// A loop device passes each read through one more queue, in order.
//
// Sources: include/uapi/linux/fuse.h, fs/fuse/dev.c and drivers/block/loop.c,
// Linux 6.18.
package fuse
