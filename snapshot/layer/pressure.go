package layer

import (
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	// LeastFree is how much of the file system must be free for backfill, in percent.
	LeastFree = 5
	// mostStalled is how much of the last ten seconds tasks may have waited
	// for memory, in percent (Documentation/accounting/psi.rst).
	mostStalled = 10.0
)

// pressed says why memory or disk is too short for backfill. It is empty where
// neither is.
func pressed(root string) string {
	var fs unix.Statfs_t
	if unix.Statfs(root, &fs) == nil && fs.Bavail*100 < fs.Blocks*LeastFree {
		return fmt.Sprintf("less than %d %% of the disk is free", LeastFree)
	}
	b, err := os.ReadFile("/proc/pressure/memory")
	if err != nil {
		return "" // the kernel has no pressure stall information
	}
	if stalled := stalledFor(string(b)); stalled > mostStalled {
		return fmt.Sprintf("tasks waited for memory in %.0f %% of the last ten seconds", stalled)
	}
	return ""
}

// stalledFor reads the share of time that some task was stalled, in percent, of
// "some avg10=0.12 avg60=...".
func stalledFor(psi string) (percent float64) {
	for line := range strings.Lines(psi) {
		if _, err := fmt.Sscanf(line, "some avg10=%f", &percent); err == nil {
			return percent
		}
	}
	return 0
}
