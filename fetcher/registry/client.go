package registry

import (
	"context"
	"fmt"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	dockerconfig "github.com/containerd/containerd/v2/core/remotes/docker/config"
	"github.com/containerd/errdefs"
)

// Options configure a Client. The zero value reads no files.
type Options struct {
	// HostsDirs are searched in order for <host>/hosts.toml, as containerd's
	// config_path.
	HostsDirs []string
	// DockerConfig is the path of a docker config.json, for credentials.
	DockerConfig string
	// PlainHTTP speaks HTTP to hosts that no hosts.toml says otherwise of.
	PlainHTTP bool

	UserAgent string
	Retry     Retry
	// Stall is how long an answer may give no byte before the connection is
	// given up. Zero means 20 seconds.
	Stall time.Duration
	// Connections is how many idle connections to one host are kept. Zero
	// means 16.
	Connections int
	// Notify, if not nil, is called when a registry comes to be in trouble, within
	// the first try that fails or is late, and with over set when one goes well
	// again. It is called from the goroutines of readers and must not block.
	Notify func(t Trouble, over bool)
}

// Client is a node's access to registries.
type Client struct {
	opts      Options
	configure docker.RegistryHosts
	lookup    func(host string) (credential, error)
	read      atomic.Int64 // bytes of content
	troubles  troubles
	health    health
	probes    probes

	mu    sync.Mutex
	hosts map[string]*hostSet
}

// New checks the options and makes a client. It connects nowhere.
func New(opts Options) (*Client, error) {
	opts.Retry = opts.Retry.withDefaults()
	if opts.Stall == 0 {
		opts.Stall = 20 * time.Second
	}
	if opts.Connections == 0 {
		opts.Connections = 16
	}
	c := &Client{
		opts:     opts,
		hosts:    map[string]*hostSet{},
		troubles: troubles{notify: opts.Notify},
		lookup: func(string) (credential, error) {
			return credential{source: "no credentials: registry.docker_config is not set"}, nil
		},
	}
	config := dockerconfig.HostOptions{HostDir: opts.hostDir, UpdateClient: c.tune}
	if opts.PlainHTTP {
		config.DefaultScheme = "http"
	}
	if opts.DockerConfig != "" {
		lookup, err := dockerCredentials(opts.DockerConfig)
		if err != nil {
			return nil, fmt.Errorf("read registry credentials from %s: %w", opts.DockerConfig, err)
		}
		c.lookup = lookup
		config.Credentials = func(host string) (string, string, error) {
			cred, err := lookup(host)
			return cred.user, cred.secret, err
		}
	}
	c.configure = dockerconfig.ConfigureHosts(context.Background(), config)
	return c, nil
}

func (o *Options) hostDir(host string) (string, error) {
	for _, root := range o.HostsDirs {
		dir, err := dockerconfig.HostDirFromRoot(root)(host)
		if err == nil || !errdefs.IsNotFound(err) {
			return dir, err
		}
	}
	return "", errdefs.ErrNotFound
}

// BytesRead is how many bytes of content were read since the start.
func (c *Client) BytesRead() int64 { return c.read.Load() }

// Hosts is the configuration in the form containerd's own resolver takes.
func (c *Client) Hosts() docker.RegistryHosts { return c.configure }

// late is how long a try may give nothing before that is trouble.
func (c *Client) late() time.Duration { return c.opts.Stall / 8 }

// tune sets a transport up for ranges of content. containerd calls it more than once
// for some transports.
func (c *Client) tune(client *http.Client) error {
	t, ok := client.Transport.(*http.Transport)
	if !ok {
		return nil
	}
	t.MaxIdleConnsPerHost = c.opts.Connections
	t.MaxIdleConns = 8 * c.opts.Connections
	t.ResponseHeaderTimeout = c.opts.Stall
	t.DisableCompression = true
	// A TLS configuration of one's own switches HTTP/2 off. Its one connection
	// carries all streams, and a stream that is given up does not end it: pings
	// find out when it is dead.
	t.ForceAttemptHTTP2 = true
	t.HTTP2 = &http.HTTP2Config{SendPingTimeout: c.opts.Stall / 4, PingTimeout: c.opts.Stall / 2}
	if dial := t.DialContext; dial != nil {
		// containerd's 30 seconds are a reader's whole patience.
		t.DialContext = limitDial(dial, c.opts.Stall/2)
	}
	return nil
}
