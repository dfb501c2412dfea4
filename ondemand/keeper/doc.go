// Package keeper is a small process that outlives the daemon and holds kernel
// descriptors for it.
//
// # Model
//
// As long as somebody holds a transport's descriptors, the kernel lets readers
// wait; when the last holder goes, waiting and later reads are let through, and
// holes read as zeros. So the daemon starts a keeper, the same binary with the
// same descriptors, in a session of its own. A daemon that starts asks the
// keeper of its directory for them ([Take]) and goes on where the last one
// ended. A daemon that lives notices the death of its keeper by the connection
// it holds, and starts another.
//
// What the descriptors are is the transport's matter; the keeper neither reads
// nor writes them. The protocol on its socket (mode 0600, root only) is one byte
// from the client: 't' to take, answered by one byte with the descriptors as
// SCM_RIGHTS; 'e' to end.
//
// # Failure
//
// The death of both at once opens the gate: the next daemon finds no keeper,
// says so, and replaces the mounts. The keeper does nothing but wait, so it
// dies only when it is killed.
package keeper
