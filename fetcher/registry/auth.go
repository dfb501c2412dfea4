package registry

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/remotes/docker/auth"
)

// authorizer holds what one host's challenges have led to. It is ours and not
// containerd's because that one keeps a failed token request as the answer for
// good, and makes the request with the context of the first reader.
//
// A grant is requested once for all requests that wait for it, in a context that none of
// them ends. One that fails is forgotten, so the next request tries again.
type authorizer struct {
	host       string       // as credentials are looked up
	client     *http.Client // of token requests
	header     http.Header  // for the host's own origin
	lookup     func(host string) (credential, error)
	timeout    time.Duration // of one token request
	configured bool          // hosts.toml has an Authorization header

	mu        sync.Mutex
	challenge *auth.Challenge     // the last one; nil as long as the host has asked for none
	grants    map[string]*grant   // by scope
	asked     map[string][]string // what challenges asked for, by our scope
}

// grant is the value of an Authorization header, or the making of it.
type grant struct {
	done    chan struct{}
	value   string
	expires time.Time // zero where only a refusal tells
	cred    credential
	err     error
}

// maxGrants bounds the scopes that a host's grants are kept for: one for each
// repository in use.
const maxGrants = 1024

// authorize returns the grant for a scope, nil where the host has asked for none.
func (a *authorizer) authorize(ctx context.Context, scope string) (*grant, error) {
	a.mu.Lock()
	if a.challenge == nil {
		a.mu.Unlock()
		return nil, nil
	}
	g := a.grants[scope]
	if g == nil || g.expired(time.Now()) {
		if len(a.grants) >= maxGrants {
			clear(a.grants)
			clear(a.asked)
		}
		g = &grant{done: make(chan struct{})}
		a.grants[scope] = g
		go a.make(context.WithoutCancel(ctx), g, *a.challenge, scope, a.asked[scope])
	}
	a.mu.Unlock()
	select {
	case <-g.done:
		return g, g.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (g *grant) expired(now time.Time) bool {
	select {
	case <-g.done:
		return !g.expires.IsZero() && !now.Before(g.expires)
	default:
		return false
	}
}

// make fills a grant in and wakes the requests that wait for it.
func (a *authorizer) make(ctx context.Context, g *grant, c auth.Challenge, scope string, asked []string) {
	defer close(g.done)
	ctx, cancel := context.WithTimeout(ctx, a.timeout)
	defer cancel()
	if g.cred, g.err = a.lookup(a.host); g.err == nil {
		switch {
		case c.Scheme == auth.BearerAuth:
			g.value, g.expires, g.err = a.token(ctx, c, g.cred, append([]string{scope}, asked...))
		case g.cred.none():
			g.err = &Error{Status: http.StatusUnauthorized, Host: a.host}
		default:
			g.value = "Basic " + base64.StdEncoding.EncodeToString([]byte(g.cred.user+":"+g.cred.secret))
		}
	} else {
		g.err = &Error{Host: a.host, Err: g.err, retry: retryFew}
	}
	var e *Error
	if errors.As(g.err, &e) {
		e.Tried = a.tried(g)
	}
	if g.err != nil {
		a.drop(scope, g)
	}
}

// drop forgets a grant, unless another has taken its place already.
func (a *authorizer) drop(scope string, g *grant) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.grants[scope] == g {
		delete(a.grants, scope)
	}
}

// refused takes a 401, or a 403 to a token, and forgets the grant that it was the
// answer to. It reports whether another request may fare better.
func (a *authorizer) refused(resp *http.Response, scope string, used *grant) bool {
	if used != nil {
		a.drop(scope, used)
	}
	if resp.StatusCode == http.StatusForbidden {
		return used != nil
	}
	for _, c := range auth.ParseAuthHeader(resp.Header) {
		if c.Scheme == auth.BearerAuth || c.Scheme == auth.BasicAuth {
			a.mu.Lock()
			a.challenge = &c
			// A mirror may know the repository by another name.
			a.asked[scope] = slices.DeleteFunc(strings.Fields(c.Parameters["scope"]), func(s string) bool { return s == scope })
			a.mu.Unlock()
			return true
		}
	}
	return false
}

// tried tells which credentials a refusal was the answer to.
func (a *authorizer) tried(g *grant) string {
	s := "no credentials: the registry did not ask for any in a way known here"
	if g != nil && g.cred.source != "" {
		s = g.cred.source
	}
	if a.configured {
		s = fmt.Sprintf("the Authorization header of hosts.toml for %s, and %s", a.host, s)
	}
	return s
}
