// Package predict tells, without running an image, which of its bytes the first
// moments of its command will read, and in which order.
//
// # Model
//
// A lazy start is slow where it waits for one round trip after the other: the
// reader touches a page, the page is fetched, the reader touches the next. What
// is known beforehand can be fetched at once, while the container is still being
// made. Peers record it from a run. Much of it can be read off the image:
//
//   - elf.go: a program names its loader and its libraries, and those theirs.
//     The loader reads headers, symbols, relocations and all writable segments
//     of each; code is read whole in files of usual size. The kernel reads around
//     what is touched.
//   - script.go: "#!" leads to another program.
//   - python.go: a module's import statements name other modules, resolved in
//     the interpreter's own path, in the order in which they would run.
//
// [Start] follows these from an image's entrypoint and command through its
// merged tree ([Tree]). The result is ranges of files in the order of first use,
// which the index turns into spans of layers.
//
// # Failure
//
// A prediction is a hint. What it misses is fetched on demand; what it names in
// vain costs bytes, which [Limit] bounds. A file that cannot be parsed ends that
// branch and nothing else.
//
// This package reads files through the caller and knows no registries.
package predict
