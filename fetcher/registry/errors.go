package registry

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"time"
)

// Error says what was asked of which host and what came of it.
type Error struct {
	Op     string // such as "get blob sha256:ab.. [0,100)"
	Host   string // empty where no host was reached
	Repo   string
	Status int // HTTP status, or 0
	Err    error

	retryAfter time.Duration
}

// ErrRange is matched where a server's answer does not fit the range asked.
var ErrRange = errors.New("answer does not fit the requested range")

func (e *Error) Error() string {
	s := e.Op + " of " + e.Repo
	if e.Host != "" {
		s += " at " + e.Host
	}
	if e.Status != 0 {
		s += fmt.Sprintf(": status %d %s", e.Status, http.StatusText(e.Status))
	}
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	switch e.Status {
	case http.StatusUnauthorized, http.StatusForbidden:
		s += " (check the credentials: registry.docker_config in lacuna's configuration)"
	case http.StatusTooManyRequests:
		s += " (the registry limits the rate of requests)"
	}
	return s
}

// Unwrap returns the cause below HTTP, if there is one.
func (e *Error) Unwrap() error { return e.Err }

// NotFound reports whether the registry answered that it has no such thing.
func NotFound(err error) bool {
	var e *Error
	return errors.As(err, &e) && e.Status == http.StatusNotFound
}

// redact removes what an error of net/http may tell of a URL: the query of a
// signed redirect target is as good as a password.
func redact(err error) error {
	var u *url.Error
	if !errors.As(err, &u) {
		return err
	}
	host := ""
	if parsed, perr := url.Parse(u.URL); perr == nil {
		host = parsed.Host
	}
	return fmt.Errorf("%s %s: %w", u.Op, host, u.Err)
}
