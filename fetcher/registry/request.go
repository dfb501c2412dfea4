package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/remotes/docker"
)

const maxRedirects = 5

// call is one operation on a repository, sent to each host until one answers.
type call struct {
	op     string // for errors
	path   string // behind /v2/<repository>/
	query  string
	header http.Header
	cap    docker.HostCapabilities
	// accept lists the statuses that count as an answer.
	accept []int
	// check, if not nil, looks at such an answer; where it does not fit, the next
	// host is asked.
	check func(*http.Response) error
	// only, if not empty, is the one host to ask.
	only string
	// last, if not nil, tells since when a host is to be asked after all others, the
	// longest first. The zero time means that it is not.
	last func(key string) time.Time
}

// answer is a response and the host that gave it, which may have redirected.
type answer struct {
	*http.Response
	from *host
}

// send tries the hosts in order and returns the first good answer. Its body is
// the caller's to close.
func (r *Repository) send(ctx context.Context, c call) (*answer, error) {
	set, err := r.client.hostsOf(r.registry)
	if err != nil {
		return nil, &Error{Op: c.op, Repo: r.Name(), Err: err, misconfigured: true, retry: retryNever}
	}
	hosts := r.order(set, c)
	failures := map[*host]*Error{}
	ranged := c.header.Get("Range") != ""
	var spare *answer // 200 where 206 was asked for: works, and costs what lies before
	for i, h := range hosts {
		began := time.Now()
		a, err := r.sendHost(ctx, c, h)
		var e *Error
		if err != nil {
			e = r.judge(c, h, err)
		}
		r.client.health.note(ctx, h.key, began, e)
		if err == nil {
			if spare != nil {
				spare.Body.Close()
			}
			if spare = a; !ranged || a.StatusCode != http.StatusOK || i+1 == len(hosts) {
				return a, nil
			}
			continue
		}
		failures[h] = e
		if ctx.Err() != nil {
			break
		}
	}
	if spare != nil {
		return spare, nil
	}
	failure := combine(set, failures)
	if failure == nil {
		return nil, &Error{Op: c.op, Repo: r.Name(), Err: fmt.Errorf("no host of %s is configured for it", r.registry), retry: retryNever}
	}
	if !failure.Is(ErrNotFound) {
		r.client.reload(r.registry, set, failure.Is(ErrUnauthorized) || failure.misconfigured)
	}
	return nil, failure
}

// order is the hosts that may be asked: as configured, then those that failed
// lately, then those that the call would rather not ask.
func (r *Repository) order(set *hostSet, c call) []*host {
	var good, failing, last []*host
	for _, h := range set.hosts {
		switch {
		case !h.Capabilities.Has(c.cap) || c.only != "" && c.only != h.key:
		case c.last != nil && !c.last(h.key).IsZero():
			last = append(last, h)
		case len(set.hosts) > 1 && r.client.health.avoided(h.key):
			failing = append(failing, h)
		default:
			good = append(good, h)
		}
	}
	slices.SortStableFunc(last, func(a, b *host) int { return c.last(a.key).Compare(c.last(b.key)) })
	return slices.Concat(good, failing, last)
}

// judge completes a failure of one host: a mistake in the configuration is known
// by a host that has never answered.
func (r *Repository) judge(c call, h *host, err error) *Error {
	var e *Error
	if !errors.As(err, &e) {
		e = &Error{Op: c.op, Host: h.Host, Repo: r.Name(), Err: err}
	}
	if mistake, maybe := configuration(e.Err); mistake && !r.client.health.answered(h.key) {
		e.misconfigured, e.retry = true, retryNever
		if maybe {
			e.retry = retryFew
		}
	}
	return e
}

// combine makes one error of those of all hosts. The registry itself, which is the
// last that is configured, knows best; but what a mirror could not give now it may
// give later.
func combine(set *hostSet, failures map[*host]*Error) *Error {
	var best *Error
	class := retryUnset
	var others []string
	for _, h := range set.hosts {
		e := failures[h]
		if e == nil {
			continue
		}
		if best != nil {
			others = append(others, best.short())
		}
		best, class = e, max(class, classOf(e))
	}
	if best == nil {
		return nil
	}
	best.Others = others
	if class > classOf(best) {
		best.retry = retryFew
	}
	return best
}

// sendHost sends to one host. After 401 it authorizes as asked. A grant that is
// refused, which registries say with 401 and some with 403, is replaced once.
func (r *Repository) sendHost(ctx context.Context, c call, h *host) (*answer, error) {
	scope := "repository:" + r.path + ":pull"
	for renewed := false; ; {
		g, err := h.auth.authorize(ctx, scope)
		if err != nil {
			return nil, r.failure(c, h.Host, 0, err)
		}
		resp, err := r.sendOnce(ctx, c, h, g)
		if err != nil {
			return nil, r.failure(c, h.Host, 0, err)
		}
		if slices.Contains(c.accept, resp.StatusCode) {
			if c.check != nil {
				if err := c.check(resp); err != nil {
					resp.Body.Close()
					return nil, r.failure(c, resp.Request.URL.Host, resp.StatusCode, err)
				}
			}
			return &answer{resp, h}, nil
		}
		failed := &Error{Op: c.op, Host: resp.Request.URL.Host, Repo: r.Name(), Status: resp.StatusCode, retryAfter: retryAfter(resp.Header)}
		text := discard(resp)
		if resp.StatusCode == http.StatusBadRequest && strings.Contains(text, "HTTPS") {
			failed.Err = errScheme
		}
		if !failed.Is(ErrUnauthorized) {
			return nil, failed
		}
		failed.Tried = h.auth.tried(g)
		if !h.auth.refused(resp, scope, g) || renewed {
			return nil, failed
		}
		renewed = true
	}
}

// sendOnce sends one request and follows its redirects.
func (r *Repository) sendOnce(ctx context.Context, c call, h *host, g *grant) (*http.Response, error) {
	u := url.URL{Scheme: h.Scheme, Host: h.Host, Path: h.Path + "/" + r.path + "/" + c.path, RawQuery: c.query}
	if h.mirror {
		// How mirrors of several registries, as Spegel and Dragonfly, know which
		// one is meant: core/remotes/docker/resolver.go, addNamespace.
		q := u.Query()
		q.Set("ns", r.registry)
		u.RawQuery = q.Encode()
	}
	req, err := r.request(ctx, &u, c.header)
	if err != nil {
		return nil, err
	}
	for k, v := range h.Header {
		req.Header[k] = append(req.Header[k], v...)
	}
	if g != nil {
		req.Header.Set("Authorization", g.value)
	}
	for hops := 0; ; hops++ {
		resp, err := h.client.Do(req)
		if err != nil {
			return nil, redact(err)
		}
		switch resp.StatusCode {
		case http.StatusMovedPermanently, http.StatusFound, http.StatusSeeOther,
			http.StatusTemporaryRedirect, http.StatusPermanentRedirect:
		default:
			return resp, nil
		}
		next, err := resp.Location()
		discard(resp)
		// containerd's fallback may have sent it with HTTP where req has HTTPS.
		at := resp.Request.URL
		if err != nil || hops >= maxRedirects || next.Scheme != "https" && next.Scheme != at.Scheme {
			return nil, errors.New("redirect without end, without target, or away from https")
		}
		from := req
		if req, err = r.request(ctx, next, c.header); err != nil {
			return nil, err
		}
		if sameOrigin(at, next) {
			req.Header = from.Header.Clone()
		}
	}
}

// request makes a request with only what every server may see.
func (r *Repository) request(ctx context.Context, u *url.URL, header http.Header) (*http.Request, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return nil, redact(err)
	}
	for k, v := range header {
		req.Header[k] = v
	}
	if r.client.opts.UserAgent != "" {
		req.Header.Set("User-Agent", r.client.opts.UserAgent)
	}
	return req, nil
}

func sameOrigin(a, b *url.URL) bool {
	return a.Scheme == b.Scheme && strings.EqualFold(a.Host, b.Host)
}

// failure makes an Error of what went wrong with one host. Errors of token
// requests, which may be those of several readers, get the operation that they
// were for.
func (r *Repository) failure(c call, host string, status int, err error) error {
	var e *Error
	if errors.As(err, &e) {
		own := *e
		own.Op, own.Repo = strings.TrimSpace(e.Op+" "+c.op), r.Name()
		return &own
	}
	return &Error{Op: c.op, Host: host, Repo: r.Name(), Status: status, Err: err}
}

// discard lets the connection be used again where little is left to read. It
// returns the beginning of what it read.
func discard(resp *http.Response) string {
	start, _ := io.ReadAll(io.LimitReader(resp.Body, 512))
	_, _ = io.CopyN(io.Discard, resp.Body, 64<<10)
	resp.Body.Close()
	return string(start)
}
