// Package feature describes what a kernel can or cannot do as values: a name, the
// release that brought it, and a probe whose result is kept. Package kernel has the
// list; this package knows none of them, so that every test may use it.
package feature

import (
	"errors"
	"fmt"
	"strings"
	"sync"
)

// ErrMissing is matched by a probe's error where the kernel does not have the
// feature. After any other error it is not known, for want of a privilege for
// example.
var ErrMissing = errors.New("this kernel does not have it")

// Feature is something that some kernels can do.
type Feature struct {
	Name string
	// Since is the release that brought it. Earlier kernels may have it too, since
	// stable releases and distributions take over changes.
	Since Version
	// Until is the last release that has it; zero where it has not been removed.
	Until Version
	// Config names the kernel's build option, if it can be left out.
	Config string
	// For says what of ours needs it.
	For string
	// Probe tries it. It returns nil, an error that matches ErrMissing or, where it
	// cannot tell, any other.
	Probe func() error

	mu    sync.Mutex
	known bool
	err   error
}

// Error is a feature that cannot be used.
type Error struct {
	Feature *Feature
	Err     error
}

func (e *Error) Error() string {
	if errors.Is(e.Err, ErrMissing) {
		return fmt.Sprintf("%s: %v (needs %s)", e.Feature.Name, e.Err, e.Feature.Needs())
	}
	return fmt.Sprintf("%s: %v", e.Feature.Name, e.Err)
}

// Unwrap returns the probe's error.
func (e *Error) Unwrap() error { return e.Err }

// Check probes the feature. What it found once, that the feature is there or is
// missing, it returns again without another probe.
func (f *Feature) Check() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.known {
		return f.err
	}
	var err error
	if probed := f.Probe(); probed != nil {
		err = &Error{f, probed}
	}
	if err == nil || errors.Is(err, ErrMissing) {
		f.known, f.err = true, err
	}
	return err
}

// Needs says which kernels have it, for people: "Linux 6.14 with CONFIG_X".
func (f *Feature) Needs() string {
	var b strings.Builder
	b.WriteString("Linux " + f.Releases())
	if f.Config != "" {
		b.WriteString(" with " + f.Config)
	}
	return b.String()
}

// Releases are the releases that have it: "6.14", or "5.19 to 7.1".
func (f *Feature) Releases() string {
	if f.Until != (Version{}) {
		return fmt.Sprintf("%s to %s", f.Since, f.Until)
	}
	return f.Since.String()
}

// Expected reports whether a release should have it.
func (f *Feature) Expected(kernel Version) bool {
	return !kernel.Less(f.Since) && (f.Until == (Version{}) || !f.Until.Less(kernel))
}
