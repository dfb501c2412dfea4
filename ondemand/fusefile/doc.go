// Package fusefile carries reads of blobs through FUSE: each blob that is not
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
//	server.go   the transport
//
// # Over the daemon's death
//
// A keeper holds the device and a journal (package journal). Requests queue in
// the kernel. The successor tells go-fuse the INIT of the session, which the
// journal's note has, and answers the requests that were read and not answered:
// all of them only look. Nodes are numbered by their names, so that the kernel's
// numbers stay good.
//
// Our own process makes no FUSE request: killed in the midst of one it would
// wait for its own answer, and keep its descriptors from the next daemon. So
// files need no OPEN, and another process looks up, opens and closes each before it
// is mounted: by then the kernel knows the name, and that it need not ask for
// FLUSH.
//
// # What it costs
//
// A read passes the daemon as long as its mount lasts, also when the blob has
// become complete; complete blobs are mounted as plain files the next time. EROFS
// caches what it has read, so a byte passes once.
//
// Sources: include/uapi/linux/fuse.h and fs/fuse/dev.c, Linux 6.18.
package fusefile
