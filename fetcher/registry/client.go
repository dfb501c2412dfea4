package registry

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	dockerconfig "github.com/containerd/containerd/v2/core/remotes/docker/config"
	"github.com/containerd/errdefs"
	"oras.land/oras-go/v2/registry/remote/credentials"
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
}

// Client is a node's access to registries.
type Client struct {
	opts      Options
	configure docker.RegistryHosts
	read      atomic.Int64 // bytes of blobs
	troubles  troubles

	mu    sync.Mutex
	hosts map[string]*hostSet
}

// hostSet is the hosts of one registry with their tokens. It is replaced when
// the tokens turn out to be stale.
type hostSet struct {
	hosts []docker.RegistryHost
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
	config := dockerconfig.HostOptions{
		HostDir: opts.hostDir,
		UpdateClient: func(c *http.Client) error {
			if t, ok := c.Transport.(*http.Transport); ok {
				t.MaxIdleConnsPerHost = opts.Connections
				t.MaxIdleConns = 8 * opts.Connections
				t.ResponseHeaderTimeout = opts.Stall
				t.DisableCompression = true
			}
			return nil
		},
	}
	if opts.PlainHTTP {
		config.DefaultScheme = "http"
	}
	if opts.DockerConfig != "" {
		creds, err := dockerCredentials(opts.DockerConfig)
		if err != nil {
			return nil, fmt.Errorf("read registry credentials from %s: %w", opts.DockerConfig, err)
		}
		config.Credentials = creds
	}
	return &Client{
		opts:      opts,
		configure: dockerconfig.ConfigureHosts(context.Background(), config),
		hosts:     map[string]*hostSet{},
	}, nil
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

// dockerCredentials looks hosts up in a config.json each time they are asked
// for, so that a renewed login is seen without a restart.
func dockerCredentials(path string) (func(host string) (string, string, error), error) {
	if _, err := os.Stat(path); err != nil && !os.IsNotExist(err) {
		return nil, err
	}
	path = filepath.Clean(path)
	return func(host string) (string, string, error) {
		store, err := credentials.NewStore(path, credentials.StoreOptions{})
		if err != nil {
			return "", "", fmt.Errorf("read %s: %w", path, err)
		}
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		cred, err := store.Get(ctx, credentials.ServerAddressFromHostname(host))
		if err != nil {
			return "", "", fmt.Errorf("credentials for %s from %s: %w", host, path, err)
		}
		if cred.RefreshToken != "" {
			// docker's identity token: containerd's authorizer takes it as a
			// secret without a user name.
			return "", cred.RefreshToken, nil
		}
		return cred.Username, cred.Password, nil
	}, nil
}

// BytesRead is how many bytes of blobs were read since the start.
func (c *Client) BytesRead() int64 { return c.read.Load() }

// Hosts is the configuration in the form containerd's own resolver takes.
func (c *Client) Hosts() docker.RegistryHosts { return c.configure }

func (c *Client) hostsOf(registry string) (*hostSet, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if set := c.hosts[registry]; set != nil {
		return set, nil
	}
	hosts, err := c.configure(registry)
	if err != nil {
		return nil, fmt.Errorf("configuration of registry %s: %w", registry, err)
	}
	set := &hostSet{hosts}
	c.hosts[registry] = set
	return set, nil
}

// forget drops a host set with its tokens, unless that was done already.
func (c *Client) forget(registry string, stale *hostSet) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.hosts[registry] == stale {
		delete(c.hosts, registry)
	}
}
