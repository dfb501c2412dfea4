package registry

import (
	"context"
	"errors"
	"math/rand/v2"
	"net/http"
	"strconv"
	"time"
)

// Retry is the policy for requests that may succeed when sent again.
type Retry struct {
	Attempts int           // tries in a row without progress; zero means 6
	Base     time.Duration // wait after the first failure; zero means 100 ms
	Max      time.Duration // longest wait of our own choice; zero means 3 s
	MaxAfter time.Duration // longest wait that a server's Retry-After gets; zero means 1 minute
	// Sleep waits between tries, until ctx ends, whose error it returns then. Its
	// owner may lend out meanwhile what the request has a share of. Nil means to
	// wait and no more. It may be called from several goroutines.
	Sleep func(ctx context.Context, d time.Duration) error
}

func (r Retry) withDefaults() Retry {
	if r.Attempts == 0 {
		r.Attempts = 6
	}
	if r.Base == 0 {
		r.Base = 100 * time.Millisecond
	}
	if r.Max == 0 {
		r.Max = 3 * time.Second
	}
	if r.MaxAfter == 0 {
		r.MaxAfter = time.Minute
	}
	if r.Sleep == nil {
		r.Sleep = sleep
	}
	return r
}

// do calls f until it succeeds, fails for good, or the attempts are used up. With
// patient set only ctx ends the attempts, as long as the failures are those of an
// outage.
func (r Retry) do(ctx context.Context, patient bool, f func() error) error {
	for failures := 1; ; failures++ {
		err := f()
		if err == nil {
			return nil
		}
		class := classOf(err)
		if class == retryNever || failures >= r.Attempts && !(patient && class == retryOn) || ctx.Err() != nil {
			return err
		}
		if serr := r.Sleep(ctx, r.wait(failures, err)); serr != nil {
			return errors.Join(serr, err)
		}
	}
}

func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}

// wait is exponential with a jitter of half its length, and never shorter than
// the server asked for.
func (r Retry) wait(failures int, err error) time.Duration {
	d := min(r.Max, r.Base<<min(failures-1, 20))
	d = d/2 + rand.N(d/2+1)
	var e *Error
	if errors.As(err, &e) {
		d = max(d, min(e.retryAfter, r.MaxAfter))
	}
	return d
}

// retryClass says how often a request that failed is sent again.
type retryClass uint8

const (
	retryUnset retryClass = iota // as the status or the cause says
	retryNever                   // the answer will be the same
	retryFew                     // a few times, also where the reader is patient
	retryOn                      // an outage: as long as the reader wants
)

// classOf tells how often to retry after an error.
func classOf(err error) retryClass {
	var e *Error
	if !errors.As(err, &e) || errors.Is(err, ErrRange) {
		return retryNever
	}
	if e.retry != retryUnset {
		return e.retry
	}
	switch e.Status {
	case 0, http.StatusRequestTimeout, http.StatusTooManyRequests:
		return retryOn
	case http.StatusOK, http.StatusPartialContent: // the body broke off
		return retryOn
	}
	if e.Status >= 500 && e.Status != http.StatusNotImplemented {
		return retryOn
	}
	return retryNever
}

// temporary reports whether the same request may fare better later.
func temporary(err error) bool { return classOf(err) != retryNever }

// retryAfter reads the header of RFC 9110, 10.2.3.
func retryAfter(h http.Header) time.Duration {
	v := h.Get("Retry-After")
	if s, err := strconv.Atoi(v); err == nil && s >= 0 && s < 1<<20 {
		return time.Duration(s) * time.Second
	}
	if t, err := http.ParseTime(v); err == nil {
		return max(0, time.Until(t))
	}
	return 0
}
