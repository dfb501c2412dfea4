//go:build !faults

// Package fault has named points at which a test build of the daemon may die,
// as if by kill -9. In every other build they are nothing.
package fault

// Point is a place that a daemon may die at.
func Point(string) {}
