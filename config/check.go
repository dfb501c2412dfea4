package config

import (
	"cmp"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"time"
)

// problems collects errors of values, by key.
type problems []problem

type problem struct{ key, text string }

func (p *problems) add(key, format string, args ...any) {
	*p = append(*p, problem{key, fmt.Sprintf(format, args...)})
}

// err joins them in the order of their keys; nil where there are none.
func (p problems) err() error {
	slices.SortStableFunc(p, func(a, b problem) int { return cmp.Compare(a.key, b.key) })
	var errs []error
	for _, one := range p {
		errs = append(errs, fmt.Errorf("%s: %s", one.key, one.text))
	}
	return errors.Join(errs...)
}

func (p *problems) absolute(key, path string) {
	if !filepath.IsAbs(path) {
		p.add(key, "%q is not an absolute path", path)
	}
}

func (p *problems) oneOf(key, v string, allowed ...string) {
	if !slices.Contains(allowed, v) {
		p.add(key, "%q is none of %q", v, allowed)
	}
}

func (p *problems) between(key string, v, from, to int) {
	if v < from || v > to {
		p.add(key, "%d is not between %d and %d", v, from, to)
	}
}

func (p *problems) size(key string, v, from, to Size) {
	if v < from || v > to {
		p.add(key, "%s is not between %s and %s", v, from, to)
	}
}

func (p *problems) lasts(key string, d Duration, from, to time.Duration) {
	if d.Duration < from || d.Duration > to {
		p.add(key, "%s is not between %s and %s", d, from, to)
	}
}

// Check returns all errors of the values, sorted by key.
func (c *Config) Check() error {
	p := &problems{}
	if c.Version != Version {
		p.add("version", "%d is not %d", c.Version, Version)
	}
	p.absolute("root", c.Root)
	c.checkSockets(p)
	p.oneOf("log_level", c.LogLevel, "debug", "info", "warn", "error")
	p.oneOf("log_format", c.LogFormat, "text", "json")
	p.oneOf("transport", c.Transport, "auto", "fanotify", "cachefiles", "fuse")
	c.checkTimes(p)
	p.between("registry.attempts", c.Registry.Attempts, 1, 100)
	p.between("fetch.concurrent", c.Fetch.Concurrent, 1, 1024)
	p.between("fetch.background", c.Fetch.Background, 1, c.Fetch.Concurrent)
	p.size("fetch.max_bytes", c.Fetch.MaxBytes, 64<<10, 256<<20)
	p.size("backfill.rate", c.Backfill.Rate, 0, 1<<50)
	p.size("cache.max_bytes", c.Cache.MaxBytes, 0, 1<<50)
	c.checkCachefiles(p)
	p.size("index.span_size", c.Index.SpanSize, 4<<10, 4<<20)
	p.size("index.checkpoint_spacing", c.Index.Spacing, 64<<10, 64<<20)
	p.size("index.stop_grain", c.Index.Grain, 4<<10, 4<<20)
	if c.Index.SpanSize%(4<<10) != 0 {
		p.add("index.span_size", "%s is not a multiple of 4KiB", c.Index.SpanSize)
	}
	return p.err()
}

func (c *Config) checkSockets(p *problems) {
	const maxPath = 107 // the kernel's limit for a Unix socket (struct sockaddr_un)
	for _, s := range []struct{ key, path string }{{"address", c.Address}, {"status_address", c.Status}} {
		p.absolute(s.key, s.path)
		if len(s.path) > maxPath {
			p.add(s.key, "%d bytes, a socket's path has at most %d", len(s.path), maxPath)
		}
	}
	if filepath.Clean(c.Address) == filepath.Clean(c.Status) {
		p.add("status_address", "%q is also the address: two sockets need two paths", c.Status)
	}
}

// checkTimes refuses values that can only be mistakes: a timeout that no registry can
// meet, or one of weeks.
func (c *Config) checkTimes(p *problems) {
	const day = 24 * time.Hour
	p.lasts("registry.backoff", c.Registry.Backoff, time.Millisecond, time.Hour)
	p.lasts("registry.max_backoff", c.Registry.MaxBackoff, time.Millisecond, time.Hour)
	p.lasts("registry.stall", c.Registry.Stall, time.Second, time.Hour)
	p.lasts("fetch.timeout", c.Fetch.Timeout, time.Second, day)
	p.lasts("backfill.quiet", c.Backfill.Quiet, 0, day)
	p.lasts("cache.every", c.Cache.Every, time.Second, day)
	if c.Registry.Backoff.Duration > c.Registry.MaxBackoff.Duration {
		p.add("registry.backoff", "%s is longer than registry.max_backoff, %s", c.Registry.Backoff, c.Registry.MaxBackoff)
	}
}

// checkCachefiles has the only check of the culling limits, besides that of the kernel,
// which does not say what is wrong.
func (c *Config) checkCachefiles(p *problems) {
	l := c.Cachefiles.Limits
	for _, l := range []struct {
		kind            string
		stop, cull, run int
	}{
		{"b", l.BStop, l.BCull, l.BRun},
		{"f", l.FStop, l.FCull, l.FRun},
	} {
		if l.stop < 0 || l.stop >= l.cull || l.cull >= l.run || l.run >= 100 {
			p.add("cachefiles.limits", "%[1]sstop %[2]d, %[1]scull %[3]d, %[1]srun %[4]d: 0 <= stop < cull < run < 100 is needed", l.kind, l.stop, l.cull, l.run)
		}
	}
	if c.Cachefiles.Dir != "" {
		p.absolute("cachefiles.dir", c.Cachefiles.Dir)
	}
}
