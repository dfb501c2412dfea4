// Package socket is listening Unix sockets that outlive the daemon. The holders of
// package hold have them too: a client that connects while no daemon runs waits
// for the next one instead of being refused.
//
//	listener.go   one socket: adopted or created, and created again when it is removed
//	bind.go       creating one
//	listeners.go  all of a daemon's
//
// A path belongs to the daemon that has locked the file beside it (package lock). The
// lock's text says which socket is at the path, so a held socket is adopted only if
// connections come to it, and one that is held for another root is left alone.
package socket
