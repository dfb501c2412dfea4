// Package hold is a small process that holds kernel descriptors for a daemon,
// so that they outlive it: a fanotify group, the cachefiles device and its
// objects. As long as somebody holds them, the kernel has readers wait; the next
// daemon takes them and answers.
//
//	protocol.go  the packets on the socket
//	process.go   Run, the keeper's life
//	client.go    Keeper, the daemon's end of one keeper
//	set.go       Set, several keepers that hold the same
//	replace.go   starting those that are missing
//	systemd.go   the service manager's descriptor store, one more holder
//	anchor.go    one more that SIGKILL does not end
//	freezer.go   the cgroup that makes it so
//
// # Model
//
// A keeper listens on a Unix socket of mode 0600 and holds what it is given
// under labels. It does nothing else: it never reads from what it holds. A Set
// runs several, since on a transport that fails open the death of the last
// holder is what must not happen: each that dies is replaced by one that is
// filled from the daemon's own descriptors. So a daemon that is killed together
// with one keeper leaves another. A keeper is given what is held in the order in
// which it was first kept: a daemon that keeps what a takeover needs before what
// readers wait on finds both, or neither.
//
// A keeper is the daemon's own binary, started with a subcommand, in a session
// of its own so that no signal for the daemon's terminal or process group
// reaches it.
//
// An anchor is for the case that the daemon and all keepers are killed at once. It
// is a process that inherits the descriptors and is then frozen, for good, in a
// version 1 freezer cgroup: it neither answers nor dies, and the next daemon
// copies what it holds with pidfd_getfd(2), which asks nothing of it. Every daemon
// starts its own, when all is kept that a takeover needs, and then ends those of
// earlier daemons, by SIGKILL and letting them out. What its command line says it
// holds is fixed; so what comes and goes, such as cachefiles' objects, is the
// keepers' alone.
//
// # Failure
//
// Anchor fails where there is no such cgroup, and in a PID namespace other than
// the machine's, whose end would wait for the frozen process. All else works
// without it.
//
// Take fails with ErrNone where no keeper listens. A keeper that does not answer
// within a few seconds counts as dead.
//
// # Concurrency
//
// Everything is safe for concurrent use.
package hold
