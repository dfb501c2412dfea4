//go:build !faults

// Package fault has named points at which a test build of the daemon may kill itself
// with SIGKILL. In every other build they do nothing.
package fault

// Point is a point at which the daemon may be killed.
func Point(string) {}
