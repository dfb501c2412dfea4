// Package metamorphic tests package snapshot as a whole, on a real kernel: random
// sequences of what containerd and its users do to a node, compared with a model.
//
// # Parts
//
// The driver is the test process. It has a model of what the node must show, and
// holds what keepers hold: the fanotify group and its journal. A *node* is a child
// process that serves a snapshotter over a root directory, as lacuna-snapshotter
// does; it dies, and the next goes on. A *reader* is a child process that reads
// files through the mounts, so that neither the node nor the driver ever does.
// The roots are on ext4 in memory, whose backing file can be copied: that is what a
// loss of power leaves.
//
// All three are this package's test binary. It runs in a mount namespace of its
// own, so that whatever becomes of it, no mount stays.
//
// # Faults
//
// The node installs a seccomp filter that asks the driver before each system call
// that writes (seccomp_unotify(2)). The driver counts them and lets one through,
// late, or not at all: with an error, with SIGKILL, or with a loss of power just
// before it. So each step is met, and no product code knows of it.
//
// # Sequences
//
// A sequence is determined by its seed: its goroutines, operations and faults. How the
// goroutines take turns is not, nor which call is the n-th; so a failure may need a
// few runs of its seed to come again.
//
//	go test ./integration/metamorphic -run TestSequences -seed 17 -sequences 1 -v
//
// It has phases. In a phase goroutines work at once, after the protocol by which
// containerd's metadata store calls a snapshotter (core/metadata/snapshot.go). Then
// faults end, a dead node is replaced, and what the node says must be what the model
// allows: an operation that was told to have succeeded has, one that was told to
// have failed may have. At the end everything must read right, then go, and
// nothing may be left.
package metamorphic
