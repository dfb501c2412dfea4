//go:build faults

// Package fault has named points at which a test build of the daemon may kill itself
// with SIGKILL. In every other build they do nothing.
package fault

import (
	"fmt"
	"math/rand/v2"
	"os"

	"golang.org/x/sys/unix"
)

// Point kills the process with the probability that LACUNA_FAULT gives for the name, as
// in "before the answer=1/20".
func Point(name string) {
	var at string
	var n int
	for i := len(setting) - 1; i >= 0; i-- {
		if setting[i] == '=' {
			at = setting[:i]
			_, _ = fmt.Sscanf(setting[i:], "=1/%d", &n)
			break
		}
	}
	if at == name && n > 0 && rand.IntN(n) == 0 {
		_ = unix.Kill(os.Getpid(), unix.SIGKILL)
		select {} // the signal takes effect a moment later
	}
}

var setting = os.Getenv("LACUNA_FAULT")
