package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"

	"github.com/containerd/containerd/v2/core/remotes/docker"
)

const maxRedirects = 5

// call is one operation on a repository, sent to each host until one answers.
type call struct {
	op     string // for errors
	path   string // behind /v2/<repository>/
	header http.Header
	cap    docker.HostCapabilities
	// accept lists the statuses that count as an answer.
	accept []int
}

// send tries the hosts in order and returns the first good answer and the URL
// that gave it. Its body is the caller's to close.
func (r *Repository) send(ctx context.Context, c call) (*http.Response, error) {
	ctx = docker.WithScope(ctx, "repository:"+r.path+":pull")
	set, err := r.client.hostsOf(r.registry)
	if err != nil {
		return nil, &Error{Op: c.op, Repo: r.Name(), Err: err}
	}
	var failure error
	for i, host := range set.hosts {
		if !host.Capabilities.Has(c.cap) {
			continue
		}
		resp, err := r.sendHost(ctx, c, set, i)
		if err == nil {
			return resp, nil
		}
		if failure == nil || !temporary(failure) {
			failure = err // a mirror's 404 says less than the origin's 503
		}
		if ctx.Err() != nil {
			break
		}
	}
	if failure == nil {
		failure = &Error{Op: c.op, Repo: r.Name(), Err: fmt.Errorf("no host of %s is configured for it", r.registry)}
	}
	return nil, failure
}

// sendHost sends to one host. After 401 it authorizes as asked; when a known
// token is refused, which registries say with 401 and signed-URL stores with
// 403, it starts over with no tokens, once.
func (r *Repository) sendHost(ctx context.Context, c call, set *hostSet, i int) (*http.Response, error) {
	host := set.hosts[i]
	fresh := false
	for challenged := false; ; {
		resp, authorized, err := r.sendOnce(ctx, c, host)
		if err != nil {
			return nil, r.failure(c, host.Host, 0, err)
		}
		for _, status := range c.accept {
			if resp.StatusCode == status {
				return resp, nil
			}
		}
		failed := &Error{Op: c.op, Host: resp.Request.URL.Host, Repo: r.Name(), Status: resp.StatusCode, retryAfter: retryAfter(resp.Header)}
		discard(resp)
		switch {
		case resp.StatusCode == http.StatusUnauthorized && !challenged && host.Authorizer != nil:
			challenged = true
			if err := host.Authorizer.AddResponses(ctx, []*http.Response{resp}); err == nil {
				continue
			} else if !authorized {
				failed.Err = redact(err)
				return nil, failed
			}
		case resp.StatusCode == http.StatusUnauthorized || resp.StatusCode == http.StatusForbidden:
		default:
			return nil, failed
		}
		if fresh || !authorized {
			return nil, failed
		}
		fresh, challenged = true, false
		r.client.forget(r.registry, set)
		if set, err = r.client.hostsOf(r.registry); err != nil || i >= len(set.hosts) {
			return nil, failed
		}
		host = set.hosts[i]
	}
}

// sendOnce sends one request and follows its redirects. authorized tells
// whether the first request carried credentials.
func (r *Repository) sendOnce(ctx context.Context, c call, host docker.RegistryHost) (resp *http.Response, authorized bool, err error) {
	u := url.URL{Scheme: host.Scheme, Host: host.Host, Path: host.Path + "/" + r.path + "/" + c.path}
	if host.Host != r.registry && !docker.IsLocalhost(host.Host) && r.registry != "docker.io" {
		u.RawQuery = url.Values{"ns": {r.registry}}.Encode() // containerd's hint to mirrors
	}
	req, err := r.request(ctx, &u, c.header)
	if err != nil {
		return nil, false, err
	}
	for k, v := range host.Header {
		req.Header[k] = append(req.Header[k], v...)
	}
	if host.Authorizer != nil {
		if err := host.Authorizer.Authorize(ctx, req); err != nil {
			return nil, false, fmt.Errorf("authorize: %w", redact(err))
		}
	}
	authorized = req.Header.Get("Authorization") != ""
	client := *host.Client
	client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	for hops := 0; ; hops++ {
		resp, err = client.Do(req)
		if err != nil {
			return nil, authorized, redact(err)
		}
		switch resp.StatusCode {
		case http.StatusMovedPermanently, http.StatusFound, http.StatusSeeOther,
			http.StatusTemporaryRedirect, http.StatusPermanentRedirect:
		default:
			return resp, authorized, nil
		}
		next, err := resp.Location()
		discard(resp)
		if err != nil || hops >= maxRedirects || next.Scheme != "https" && next.Scheme != req.URL.Scheme {
			return nil, authorized, errors.New("redirect without end, without target, or away from https")
		}
		from := req
		if req, err = r.request(ctx, next, c.header); err != nil {
			return nil, authorized, err
		}
		if sameOrigin(from.URL, next) {
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

func (r *Repository) failure(c call, host string, status int, err error) error {
	return &Error{Op: c.op, Host: host, Repo: r.Name(), Status: status, Err: err}
}

// discard lets the connection be used again where little is left to read.
func discard(resp *http.Response) {
	_, _ = io.CopyN(io.Discard, resp.Body, 64<<10)
	resp.Body.Close()
}
