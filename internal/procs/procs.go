// Package procs finds processes by their command lines, for tests.
package procs

import (
	"bytes"
	"os"
	"path/filepath"
	"strconv"
)

// Find lists the processes whose command line contains some words, in this order and
// next to each other, after the program's name.
func Find(words ...string) (pids []int, err error) {
	want := []byte{0}
	for _, w := range words {
		want = append(append(want, w...), 0)
	}
	lines, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		return nil, err
	}
	for _, path := range lines {
		b, err := os.ReadFile(path)
		if err != nil || !bytes.Contains(b, want) {
			continue // it has ended, or does not match
		}
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(path)))
		if err != nil {
			return nil, err
		}
		pids = append(pids, pid)
	}
	return pids, nil
}
