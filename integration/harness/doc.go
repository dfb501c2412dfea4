// Package harness starts the real programs for tests, benchmarks and the demo: a
// registry, a slow link before it, containerd with our daemon as its proxy plugin; and
// it builds images of Debian packages.
//
// An [Env] is one such set in one directory. Close ends every process that it
// started, removes every mount below its directory and then the directory; what
// a killed run left behind is removed by the next New. All sockets listen on
// loopback.
package harness
