package registry

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"time"

	"github.com/containerd/containerd/v2/core/remotes/docker"
)

// host is one place where a registry's content may be.
type host struct {
	docker.RegistryHost
	key    string       // its base URL
	client *http.Client // follows no redirects
	auth   *authorizer
	mirror bool // not the registry itself
}

// hostSet is the hosts of one registry, in the configured order, with their
// grants. It is replaced to read the configuration again.
type hostSet struct {
	hosts  []*host
	loaded time.Time
}

func (c *Client) hostsOf(registry string) (*hostSet, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if set := c.hosts[registry]; set != nil {
		return set, nil
	}
	configured, err := c.configure(registry)
	if err != nil {
		return nil, fmt.Errorf("configuration of registry %s: %w", registry, err)
	}
	set := &hostSet{loaded: time.Now()}
	for _, h := range configured {
		set.hosts = append(set.hosts, c.host(registry, h))
	}
	c.hosts[registry] = set
	return set, nil
}

func (c *Client) host(registry string, h docker.RegistryHost) *host {
	client := *h.Client
	client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	return &host{
		RegistryHost: h,
		key:          h.Scheme + "://" + h.Host + h.Path,
		client:       &client,
		mirror:       h.Host != registry && (registry != "docker.io" || h.Host != "registry-1.docker.io"),
		auth: &authorizer{
			host: h.Host, client: tokenClient(h.Client), header: h.Header, lookup: c.lookup,
			timeout: c.opts.Stall + helperTimeout, configured: h.Header.Get("Authorization") != "",
			grants: map[string]*grant{}, asked: map[string][]string{},
		},
	}
}

// How old a configuration is when a failure makes the client read it again: almost at
// once where the configuration may be the reason.
const (
	reloadMistake = 2 * time.Second
	reloadOutage  = 30 * time.Second
)

// reload drops a host set after a failure, so that a corrected configuration is seen
// without a restart.
func (c *Client) reload(registry string, stale *hostSet, mistake bool) {
	after := reloadOutage
	if mistake {
		after = reloadMistake
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.hosts[registry] == stale && time.Since(stale.loaded) >= after {
		delete(c.hosts, registry)
	}
}

type dialer = func(ctx context.Context, network, address string) (net.Conn, error)

func limitDial(dial dialer, limit time.Duration) dialer {
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		ctx, cancel := context.WithTimeout(ctx, limit)
		defer cancel()
		return dial(ctx, network, address)
	}
}
