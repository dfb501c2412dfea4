package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"time"

	"github.com/containerd/containerd/v2/core/remotes/docker/auth"
	remoteerrors "github.com/containerd/containerd/v2/core/remotes/errors"
)

// maxTokenAnswer bounds what a token server may answer. Real tokens are a few
// kilobytes.
const maxTokenAnswer = 1 << 20

// token asks the server that a challenge names for a token of the scopes.
func (a *authorizer) token(ctx context.Context, c auth.Challenge, cred credential, scopes []string) (value string, expires time.Time, err error) {
	to, err := auth.GenerateTokenOptions(ctx, a.host, cred.user, cred.secret, c)
	if err != nil {
		return "", time.Time{}, &Error{Host: a.host, Err: err}
	}
	realm, err := url.Parse(to.Realm)
	if err != nil || realm.Host == "" || realm.Scheme != "http" && realm.Scheme != "https" {
		return "", time.Time{}, &Error{Host: a.host, Err: errors.New("the challenge's realm is no URL"), retry: retryNever}
	}
	to.Scopes = scopes
	header := http.Header{}
	if realm.Host == a.host {
		header = a.header // what hosts.toml has for this host is for no other
	}
	began := time.Now()
	token, seconds, err := a.fetchToken(ctx, header, to)
	if err != nil {
		return "", time.Time{}, tokenError(realm.Host, err)
	}
	if seconds > 0 {
		// A little early, so that no request carries a token that ends on its way.
		life := time.Duration(min(seconds, 1<<20)) * time.Second
		expires = began.Add(life - min(life/10, 5*time.Second))
	}
	return "Bearer " + token, expires, nil
}

// fetchToken does as containerd: POST with credentials, GET where the server does
// not know that, and without.
func (a *authorizer) fetchToken(ctx context.Context, header http.Header, to auth.TokenOptions) (token string, seconds int, err error) {
	if to.Secret != "" {
		r, err := auth.FetchTokenWithOAuth(ctx, a.client, header, "containerd-client", to)
		if err == nil {
			return r.AccessToken, r.ExpiresInSeconds, nil
		}
		var status remoteerrors.ErrUnexpectedStatus
		if !errors.As(err, &status) {
			return "", 0, err
		}
		switch status.StatusCode {
		case http.StatusBadRequest, http.StatusUnauthorized, http.StatusNotFound, http.StatusMethodNotAllowed:
		default:
			return "", 0, err
		}
		if to.Username == "" && status.StatusCode == http.StatusMethodNotAllowed {
			return "", 0, err // an identity token goes by POST only
		}
	}
	r, err := auth.FetchToken(ctx, a.client, header, to)
	if err != nil {
		return "", 0, err
	}
	return r.Token, r.ExpiresInSeconds, nil
}

// tokenError translates: the URL in containerd's error may have a query.
func tokenError(host string, err error) error {
	e := &Error{Op: "get token for", Host: host, Err: redact(err)}
	var status remoteerrors.ErrUnexpectedStatus
	if errors.As(err, &status) {
		e.Status, e.Err = status.StatusCode, nil
	}
	return e
}

// tokenClient makes the client of token requests: one that takes a password to
// no other origin, whatever the server answers, and reads no endless answer.
func tokenClient(c *http.Client) *http.Client {
	return &http.Client{
		Transport: limited{c.Transport},
		CheckRedirect: func(req *http.Request, via []*http.Request) error {
			from := via[len(via)-1].URL
			upgrade := from.Scheme == "http" && req.URL.Scheme == "https" && from.Hostname() == req.URL.Hostname()
			if len(via) >= maxRedirects || !sameOrigin(from, req.URL) && !upgrade {
				return fmt.Errorf("token server redirects to another origin, %s", req.URL.Host)
			}
			return nil
		},
	}
}

// limited cuts long answers off.
type limited struct{ http.RoundTripper }

// RoundTrip implements http.RoundTripper.
func (l limited) RoundTrip(req *http.Request) (*http.Response, error) {
	resp, err := l.RoundTripper.RoundTrip(req)
	if err == nil {
		resp.Body = struct {
			io.Reader
			io.Closer
		}{io.LimitReader(resp.Body, maxTokenAnswer), resp.Body}
	}
	return resp, err
}
