// Package metamorphic tests package snapshot as a whole, on a real kernel: random
// sequences of what containerd and its users do to a node, compared with a model.
//
// # Parts
//
// The driver is the test process. It has a model of what the node must show, and
// holds what keepers hold: the fanotify group and its in-flight table. A *node* is a child
// process that serves a snapshotter over a root directory, as lacuna-snapshotter
// does; it dies, and the next goes on. A *reader* is a child process that reads
// files through the mounts, so that neither the node nor the driver ever does.
// The roots are on ext4 in memory, whose backing file can be copied: that is what a
// loss of power leaves.
//
// All three are this package's test binary. It runs in a mount namespace of its
// own, so that no mount is left however it ends.
//
// # Faults
//
// The node installs a seccomp filter that asks the driver before each system call
// that writes (seccomp_unotify(2)). The driver counts them and lets a call pass,
// delays it, or refuses it: with an error, with SIGKILL, or with a loss of power just
// before it. So each step is tested without code for it in the product.
//
// # Sequences
//
// The seed of a sequence determines its goroutines, operations and faults. It does not
// determine how the goroutines take turns, nor which call is the n-th; so it may take a
// few runs of a seed to see a failure again.
//
//	go test ./integration/metamorphic -run TestSequences -seed 17 -sequences 1 -v
//
// It has phases. In a phase goroutines work at once, after the protocol by which
// containerd's metadata store calls a snapshotter (core/metadata/snapshot.go). Then
// faults end, a dead node is replaced, and the node's answers must be what the model
// allows: an operation that was reported as successful has happened, one that was
// reported as failed may have happened. At the end everything must read right, then
// everything is removed, and nothing may be left.
package metamorphic
