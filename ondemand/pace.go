package ondemand

import (
	"log/slog"
	"time"
)

// Pace keeps a loop that reads from the kernel alive when a read fails for a reason
// that may pass, such as too many open files: it waits a little, ever longer while
// reads go on to fail, and logs a few of the errors only. It belongs to the loop's
// goroutine.
type Pace struct {
	Log  *slog.Logger
	What string // is read, for the log

	wait   time.Duration
	silent int // errors that were not logged
	next   time.Time
}

const (
	// A failed read may have cost a reader an error, so haste does not help; but
	// those behind it wait.
	minPace, maxPace = time.Millisecond, 100 * time.Millisecond
	// paceLog is how far apart errors are logged.
	paceLog = 10 * time.Second
)

// Failed waits after an error.
func (p *Pace) Failed(err error) {
	p.wait = min(max(2*p.wait, minPace), maxPace)
	if now := time.Now(); now.After(p.next) {
		p.Log.Error(p.What+" could not be read; it is tried again", "error", err, "errors since the last message", p.silent)
		p.silent, p.next = 0, now.Add(paceLog)
	} else {
		p.silent++
	}
	time.Sleep(p.wait)
}

// Good says that a read did not fail.
func (p *Pace) Good() { p.wait = 0 }
