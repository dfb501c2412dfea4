// Package cachefiles carries reads of EROFS mounts over fscache, by the kernel's
// cachefiles on-demand mode (Linux 5.19 to 7.1, CONFIG_CACHEFILES_ONDEMAND and
// CONFIG_EROFS_FS_ONDEMAND).
//
// # Model
//
// The kernel keeps the cache: one file for each cookie, in a directory that the
// daemon gives it when it binds the device. A mount names its bootstrap (fsid=) and its
// blob (device=); for each the kernel sends OPEN with a descriptor, for each
// miss READ, and CLOSE at the end. The server writes to the descriptor and completes
// the READ. The cache file itself tells what is filled: its holes are what the kernel
// asks for, and the server sees them through the same descriptor.
//
//	driver.go  opening the transport, new or adopted; labels
//	codec.go   the messages of both dialects, pure
//	device.go  the system calls: set up, poll, read, complete
//	object.go  one OPEN: a descriptor, its writes and its scan
//	backing.go   a blob's bytes in the cache: what the engine fills
//	server.go  the transport, and whose objects are whose
//	loop.go    one reader of requests
//	answer.go  a goroutine for each request
//	mount.go   mounts, and where a blob's cache file is
//	cull.go    freeing cold objects when the kernel asks
//
// README.md beside this file has the protocol, its pitfalls and the tests that
// cover them.
//
// # Durability
//
// Writes to the descriptor are direct I/O of whole blocks into a hole. The file
// system of the cache makes the extent readable when the data has been written,
// so after a loss of power a block is a hole or the block. Objects that the
// kernel had not committed yet fail its own coherency check and start empty.
//
// # Failure
//
// A READ that cannot be filled is completed without data; the kernel looks
// again, finds the hole and returns EIO. When the device is closed for good the
// cache is dead and all reads of holes fail. Where the kernel has "restore" (6.8, and
// stable kernels since), holders have the device and the descriptors while no daemon
// runs: see package hold.
//
// Sources: fs/cachefiles/ondemand.c, daemon.c and
// include/uapi/linux/cachefiles.h of Linux 6.1.192 and 6.12; for the v5 dialect
// the series "fscache,erofs: fscache-based on-demand read semantics", version 5.
package cachefiles
