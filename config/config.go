// Package config is the daemon's TOML file: its defaults, how it is read, and
// what is wrong with it. Only commands import it.
//
// A file need not exist, and need only say what differs from the defaults. An
// unknown key is an error, with its line, since it is a misspelt one, and so is a
// value of the wrong kind or without the unit that it needs. Default
// returns a file with every key and its default, which a test holds against the
// struct.
package config

import (
	_ "embed"
	"errors"
	"fmt"
	"os"
)

// Config is the file.
type Config struct {
	Version   int    `toml:"version"` // of the file's format
	Root      string `toml:"root"`
	Address   string `toml:"address"`
	Status    string `toml:"status_address"`
	LogLevel  string `toml:"log_level"`
	LogFormat string `toml:"log_format"`
	Transport string `toml:"transport"`
	Anchor    bool   `toml:"anchor"`

	Registry   Registry   `toml:"registry"`
	Fetch      Fetch      `toml:"fetch"`
	Settle     Settle     `toml:"settle"`
	Cache      Cache      `toml:"cache"`
	FUSE       FUSE       `toml:"fuse"`
	Cachefiles Cachefiles `toml:"cachefiles"`
	Index      Index      `toml:"index"`
}

// Registry is how registries are reached.
type Registry struct {
	HostsDirs    []string `toml:"hosts_dirs"`
	DockerConfig string   `toml:"docker_config"`
	PlainHTTP    bool     `toml:"plain_http"`
	Attempts     int      `toml:"attempts"`
	Backoff      Duration `toml:"backoff"`
	MaxBackoff   Duration `toml:"max_backoff"`
	Stall        Duration `toml:"stall"`
}

// Fetch bounds what is fetched at once.
type Fetch struct {
	Concurrent int      `toml:"concurrent"`
	Background int      `toml:"background"`
	MaxBytes   Size     `toml:"max_bytes"`
	Timeout    Duration `toml:"timeout"`
}

// Settle is filling ahead.
type Settle struct {
	Enabled bool     `toml:"enabled"`
	Quiet   Duration `toml:"quiet"`
	Rate    Size     `toml:"rate"`
}

// Cache is what may stay on disk.
type Cache struct {
	MaxBytes Size     `toml:"max_bytes"`
	Every    Duration `toml:"every"`
}

// FUSE is how blobs are mounted, where that transport is used.
type FUSE struct {
	Loop bool `toml:"loop"`
}

// Cachefiles is the kernel's cache, where that transport is used.
type Cachefiles struct {
	Dir    string           `toml:"dir"`
	Tag    string           `toml:"tag"`
	Limits CachefilesLimits `toml:"limits"`
}

// CachefilesLimits are percentages of free blocks and files, see the kernel's
// documentation of cachefiles.
type CachefilesLimits struct {
	BRun  int `toml:"brun"`
	BCull int `toml:"bcull"`
	BStop int `toml:"bstop"`
	FRun  int `toml:"frun"`
	FCull int `toml:"fcull"`
	FStop int `toml:"fstop"`
}

// Index is how indexes are made.
type Index struct {
	SpanSize Size `toml:"span_size"`
	Spacing  Size `toml:"checkpoint_spacing"`
	Grain    Size `toml:"stop_grain"`
}

//go:embed default.toml
var defaults string

// Default is a file with every key, its default and what it means.
func Default() string { return defaults }

// Path is where the file is looked for unless a flag says otherwise.
const Path = "/etc/lacuna/config.toml"

// Load reads a file over the defaults. A missing file at Path is no error.
func Load(path string) (*Config, error) {
	c := &Config{}
	if err := errors.Join(decode([]byte(defaults), c), c.Check()); err != nil {
		return nil, fmt.Errorf("built-in defaults: %w", err)
	}
	b, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) && path == Path {
		return c, nil
	}
	if err != nil {
		return nil, err
	}
	if err := c.read(b); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return c, nil
}

// read reads a file over c, and reports all that is wrong with it at once.
func (c *Config) read(b []byte) error {
	if err := checkVersion(b); err != nil {
		return err
	}
	return errors.Join(decode(b, c), c.Check())
}
