package registry

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"
)

// Error says what was asked of which host and what came of it. It matches
// [ErrUnauthorized], [ErrNotFound] or [ErrMisconfigured] where it is one of them.
type Error struct {
	Op     string // such as "get content sha256:ab.. [0,100)"
	Host   string // empty where no host was reached
	Repo   string
	Status int // HTTP status, or 0
	// Tried says which credentials a refusal was the answer to, or why there
	// were none. It has no secret.
	Tried string
	// Others are what the hosts before this one gave, one line each.
	Others []string
	Err    error

	misconfigured bool
	retry         retryClass
	retryAfter    time.Duration
}

var (
	// ErrUnauthorized is matched by 401 and 403, of registries and of token servers.
	ErrUnauthorized = errors.New("unauthorized")
	// ErrNotFound is matched by 404.
	ErrNotFound = errors.New("not found")
	// ErrMisconfigured is matched where a host that has never answered is asked in
	// a way that waiting does not repair: HTTPS of a server of HTTP, or the other way
	// round, a certificate that is not trusted, a name that does not exist.
	ErrMisconfigured = errors.New("registry misconfigured")
	// ErrRange is matched where a server's answer does not fit the range asked.
	ErrRange = errors.New("answer does not fit the requested range")
)

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
	switch {
	case e.Is(ErrUnauthorized):
		s += " (" + e.Tried + ")"
	case e.Status == http.StatusTooManyRequests:
		s += " (the registry limits the rate of requests)"
	case e.misconfigured:
		s += " (check the registry's address, hosts.toml and registry.plain_http)"
	}
	if len(e.Others) > 0 {
		s += "; before that, " + strings.Join(e.Others, "; ")
	}
	return s
}

// Unwrap returns the cause below HTTP, if there is one.
func (e *Error) Unwrap() error { return e.Err }

// Is matches the kinds of errors that callers treat in their own ways.
func (e *Error) Is(target error) bool {
	switch target {
	case ErrUnauthorized:
		return e.Status == http.StatusUnauthorized || e.Status == http.StatusForbidden
	case ErrNotFound:
		return e.Status == http.StatusNotFound
	case ErrMisconfigured:
		return e.misconfigured
	}
	return false
}

// NotFound reports whether the registry answered that it has no such thing.
func NotFound(err error) bool { return errors.Is(err, ErrNotFound) }

// short is the error as one of many hosts.
func (e *Error) short() string {
	s := e.Host
	if e.Status != 0 {
		s += fmt.Sprintf(": status %d", e.Status)
	}
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	if e.Is(ErrUnauthorized) {
		s += " (" + e.Tried + ")"
	}
	return s
}

// configuration reports whether a failure to connect looks like a mistake in the
// configuration, and whether an outage can cause it too: a name server in trouble may
// deny a name.
func configuration(err error) (mistake, maybe bool) {
	var (
		record    tls.RecordHeaderError
		verify    *tls.CertificateVerificationError
		authority x509.UnknownAuthorityError
		hostname  x509.HostnameError
		invalid   x509.CertificateInvalidError
		roots     x509.SystemRootsError
		remote    *net.OpError
		dns       *net.DNSError
	)
	switch {
	case errors.As(err, &dns):
		return dns.IsNotFound, true
	case errors.Is(err, http.ErrSchemeMismatch), errors.As(err, &record), errors.As(err, &verify),
		errors.As(err, &authority), errors.As(err, &hostname), errors.As(err, &invalid), errors.As(err, &roots),
		errors.Is(err, errScheme):
		return true, false
	case errors.As(err, &remote) && remote.Op == "remote error":
		// Alerts have no exported type: these are of crypto/tls/alert.go.
		text := []string{
			"bad certificate", "handshake failure", "certificate required",
			"unknown certificate authority", "protocol version not supported", "unrecognized name",
		}
		return slices.ContainsFunc(text, func(t string) bool { return strings.Contains(remote.Err.Error(), t) }), false
	}
	return false, false
}

// errScheme stands for the answer that TLS servers give to plain requests.
var errScheme = errors.New("server of HTTPS was asked with HTTP")

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
