// Package config reads and checks the daemon's TOML configuration file. Only commands
// import it.
//
// The file is optional, and needs only the keys that differ from the defaults. An
// unknown key is an error, since it may be a misspelt one, and so is a value of the
// wrong kind or without the unit that it needs. [Load] returns all errors at once.
// [Default] returns a file with every key and its default; a test compares it with the
// struct.
package config

import (
	_ "embed"
	"errors"
	"fmt"
	"os"
)

// Config is a configuration file. default.toml documents each key.
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
	Backfill   Backfill   `toml:"backfill"`
	Cache      Cache      `toml:"cache"`
	FUSE       FUSE       `toml:"fuse"`
	Cachefiles Cachefiles `toml:"cachefiles"`
	Index      Index      `toml:"index"`
}

// Registry has the options of requests to registries.
type Registry struct {
	HostsDirs    []string `toml:"hosts_dirs"`
	DockerConfig string   `toml:"docker_config"`
	PlainHTTP    bool     `toml:"plain_http"`
	Attempts     int      `toml:"attempts"`
	Backoff      Duration `toml:"backoff"`
	MaxBackoff   Duration `toml:"max_backoff"`
	Stall        Duration `toml:"stall"`
}

// Fetch has the limits of fetches.
type Fetch struct {
	Concurrent int      `toml:"concurrent"`
	Background int      `toml:"background"`
	MaxBytes   Size     `toml:"max_bytes"`
	Timeout    Duration `toml:"timeout"`
}

// Backfill is filling layers to their end in the background.
type Backfill struct {
	Enabled bool     `toml:"enabled"`
	Quiet   Duration `toml:"quiet"`
	Rate    Size     `toml:"rate"`
}

// Cache has the limit of disk space.
type Cache struct {
	MaxBytes Size     `toml:"max_bytes"`
	Every    Duration `toml:"every"`
}

// FUSE has the options of the fuse transport.
type FUSE struct {
	Loop bool `toml:"loop"`
}

// Cachefiles has the options of the cachefiles transport.
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

// Index has the parameters of new indexes.
type Index struct {
	SpanSize Size `toml:"span_size"`
	Spacing  Size `toml:"checkpoint_spacing"`
	Grain    Size `toml:"stop_grain"`
}

//go:embed default.toml
var defaults string

// Default returns a file with every key, its default and a comment on it.
func Default() string { return defaults }

// Path is the file's path where no flag gives another.
const Path = "/etc/lacuna/config.toml"

// Load returns the defaults, overridden by a file. A missing file at Path is not an
// error.
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

// read overrides c with a file, and returns all errors of the file.
func (c *Config) read(b []byte) error {
	if err := checkVersion(b); err != nil {
		return err
	}
	return errors.Join(decode(b, c), c.Check())
}
