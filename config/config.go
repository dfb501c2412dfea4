// Package config is the daemon's TOML file: its defaults, how it is read, and
// what is wrong with it. Only commands import it.
//
// A file need not exist, and need only say what differs from the defaults. An
// unknown key is an error, with its line, since it is a misspelt one. Default
// returns a file with every key and its default, which a test holds against the
// struct.
package config

import (
	"bytes"
	_ "embed"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/pelletier/go-toml/v2"
)

// Config is the file.
type Config struct {
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
	MaxBytes   int64    `toml:"max_bytes"`
	Timeout    Duration `toml:"timeout"`
}

// Settle is filling ahead.
type Settle struct {
	Enabled bool     `toml:"enabled"`
	Quiet   Duration `toml:"quiet"`
	Rate    int64    `toml:"rate"`
}

// Cache is what may stay on disk.
type Cache struct {
	MaxBytes int64    `toml:"max_bytes"`
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
	SpanSize int64 `toml:"span_size"`
	Spacing  int64 `toml:"checkpoint_spacing"`
	Grain    int64 `toml:"stop_grain"`
}

// Duration is written as Go writes it, such as "1m30s".
type Duration time.Duration

// UnmarshalText implements encoding.TextUnmarshaler.
func (d *Duration) UnmarshalText(b []byte) error {
	v, err := time.ParseDuration(string(b))
	if err == nil && v < 0 {
		err = fmt.Errorf("negative duration %q", b)
	}
	*d = Duration(v)
	return err
}

// MarshalText implements encoding.TextMarshaler.
func (d Duration) MarshalText() ([]byte, error) { return []byte(time.Duration(d).String()), nil }

//go:embed default.toml
var defaults string

// Default is a file with every key, its default and what it means.
func Default() string { return defaults }

// Path is where the file is looked for unless a flag says otherwise.
const Path = "/etc/lacuna/config.toml"

// Load reads a file over the defaults. A missing file at Path is no error.
func Load(path string) (*Config, error) {
	c := &Config{}
	if err := decode([]byte(defaults), c); err != nil {
		return nil, fmt.Errorf("built-in defaults: %w", err)
	}
	b, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) && path == Path {
		return c, nil
	}
	if err != nil {
		return nil, err
	}
	if err := decode(b, c); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if err := c.Check(); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return c, nil
}

func decode(b []byte, c *Config) error {
	strict := &toml.StrictMissingError{}
	d := toml.NewDecoder(bytes.NewReader(b)).DisallowUnknownFields()
	err := d.Decode(c)
	var at *toml.DecodeError
	switch {
	case errors.As(err, &strict):
		return fmt.Errorf("unknown key:\n%s", strict.String())
	case errors.As(err, &at):
		return fmt.Errorf("\n%s", at.String())
	}
	return err
}

// Check reports all that is wrong with the values.
func (c *Config) Check() error {
	var errs []error
	bad := func(key, format string, args ...any) {
		errs = append(errs, fmt.Errorf("%s: %s", key, fmt.Sprintf(format, args...)))
	}
	for key, path := range map[string]string{"root": c.Root, "address": c.Address, "status_address": c.Status} {
		if !filepath.IsAbs(path) {
			bad(key, "%q is not an absolute path", path)
		}
	}
	// The kernel's limit for the path of a Unix socket (struct sockaddr_un).
	for key, path := range map[string]string{"address": c.Address, "status_address": c.Status} {
		if len(path) > 107 {
			bad(key, "%d bytes, a socket's path has at most 107", len(path))
		}
	}
	oneOf := func(key, v string, allowed ...string) {
		for _, a := range allowed {
			if v == a {
				return
			}
		}
		bad(key, "%q is none of %q", v, allowed)
	}
	oneOf("log_level", c.LogLevel, "debug", "info", "warn", "error")
	oneOf("log_format", c.LogFormat, "text", "json")
	oneOf("transport", c.Transport, "auto", "fanotify", "cachefiles", "fuse")
	between := func(key string, v, from, to int64) {
		if v < from || v > to {
			bad(key, "%d is not between %d and %d", v, from, to)
		}
	}
	between("registry.attempts", int64(c.Registry.Attempts), 1, 100)
	between("fetch.concurrent", int64(c.Fetch.Concurrent), 1, 1024)
	between("fetch.background", int64(c.Fetch.Background), 1, int64(c.Fetch.Concurrent))
	between("fetch.max_bytes", c.Fetch.MaxBytes, 64<<10, 256<<20)
	between("settle.rate", c.Settle.Rate, 0, 1<<50)
	for _, l := range []struct {
		kind            string
		stop, cull, run int
	}{
		{"b", c.Cachefiles.Limits.BStop, c.Cachefiles.Limits.BCull, c.Cachefiles.Limits.BRun},
		{"f", c.Cachefiles.Limits.FStop, c.Cachefiles.Limits.FCull, c.Cachefiles.Limits.FRun},
	} {
		if l.stop < 0 || l.stop >= l.cull || l.cull >= l.run || l.run >= 100 {
			bad("cachefiles.limits", "%[1]sstop %[2]d, %[1]scull %[3]d, %[1]srun %[4]d: 0 <= stop < cull < run < 100 is needed", l.kind, l.stop, l.cull, l.run)
		}
	}
	if d := c.Cachefiles.Dir; d != "" && !filepath.IsAbs(d) {
		bad("cachefiles.dir", "%q is not an absolute path", d)
	}
	between("cache.max_bytes", c.Cache.MaxBytes, 0, 1<<50)
	between("index.span_size", c.Index.SpanSize, 4096, 4<<20)
	between("index.checkpoint_spacing", c.Index.Spacing, 64<<10, 64<<20)
	between("index.stop_grain", c.Index.Grain, 4096, 4<<20)
	if c.Index.SpanSize%4096 != 0 {
		bad("index.span_size", "%d is not a multiple of 4096", c.Index.SpanSize)
	}
	for key, d := range map[string]Duration{
		"registry.stall": c.Registry.Stall, "registry.backoff": c.Registry.Backoff,
		"registry.max_backoff": c.Registry.MaxBackoff, "fetch.timeout": c.Fetch.Timeout,
		"cache.every": c.Cache.Every,
	} {
		if d == 0 {
			bad(key, "must be longer than zero")
		}
	}
	return errors.Join(errs...)
}
