// Package feature describes features of the kernel as values: a name, the release that
// introduced it, and a probe whose result is cached. Package kernel has the list of
// features; this package knows none of them, so that every test may use it.
package feature

import (
	"errors"
	"fmt"
	"strings"
	"sync"
)

// ErrMissing is matched by a probe's error where the kernel does not have the
// feature. After any other error it is unknown: a privilege may be missing, for example.
var ErrMissing = errors.New("this kernel does not have it")

// Feature is a feature that some kernels have.
type Feature struct {
	Name string
	// Since is the release that introduced it. Earlier kernels may have it too, since
	// stable releases and distributions backport changes.
	Since Version
	// Until is the last release that has it; zero where it has not been removed.
	Until Version
	// Config names the kernel's build option, if it can be left out.
	Config string
	// For says what needs it.
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

// Check probes the feature. It caches the result if the feature is present or missing,
// and probes again if it was unknown.
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

// Needs says which kernels have it: "Linux 6.14 with CONFIG_X".
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
