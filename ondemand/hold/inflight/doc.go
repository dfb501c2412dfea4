// Package inflight is the in-flight table: the requests that a transport has read
// from the kernel and not yet answered, in memory that outlives the daemon. The
// holders (package hold) hold its file beside the transport's own descriptor. A
// daemon that dies leaves the table as it is; the next daemon answers what is in it.
//
// # Model
//
// The kernel itself writes requests into the inbox, a part of the table, so there is
// no instruction at which a request has been read and is not in the table. From the
// inbox each request is copied into a slot, as the transport encodes it. Then the
// inbox is emptied; the slot is freed when the request is answered. The next daemon
// may therefore find a request twice, or once more after it was answered. Transports
// must give an answer that does no harm then.
//
// The table grows when all slots are taken. Not to read from the kernel until a slot
// is free would not do: the answers that free slots may need a request that is behind
// others in the kernel's queue. See package fanotify, whose fills raise events. A slot
// is small beside the thread that waits for its answer.
//
// It is no journal: it is memory, promises nothing over a loss of power, and has no
// order.
//
//	0     8      magic "LACUNAJ3"
//	8     8      length of what is in the inbox
//	16    8      length of the note
//	24    24     the sizes of inbox, note and slot, 8 bytes each
//	4096  ...    inbox, note, and slots to the end; a slot is its length (4 bytes,
//	             0 is free) and as many bytes
//
// # Concurrency
//
// Put and Clear may be called concurrently; the inbox and the note belong to one
// goroutine.
package inflight
