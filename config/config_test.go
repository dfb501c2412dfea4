package config

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pelletier/go-toml/v2"
)

// TestDefaultSizesHaveUnits, as people copy them.
func TestDefaultSizesHaveUnits(t *testing.T) {
	b, err := toml.Marshal(mustLoadDefault(t))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.SplitSeq(string(b), "\n") {
		// go-toml quotes with apostrophes.
		if text := strings.ReplaceAll(line, "'", `"`); strings.HasSuffix(text, `B"`) && !strings.Contains(Default(), "\n"+text+"\n") {
			t.Errorf("default.toml lacks the line %s", text)
		}
	}
}

func mustLoadDefault(t *testing.T) *Config {
	t.Helper()
	path := filepath.Join(t.TempDir(), "config.toml")
	if err := os.WriteFile(path, []byte(Default()), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := Load(path)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestDefaultsAreValidAndWhole(t *testing.T) {
	if _, err := Load(Path + ".none"); err == nil {
		t.Error("a named file that is missing is no error")
	}
	c := mustLoadDefault(t)
	if err := c.Check(); err != nil {
		t.Fatal(err)
	}
	// Every key of the struct is in the file: encode, and look for each.
	b, err := toml.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.SplitSeq(string(b), "\n") {
		key, _, ok := strings.Cut(line, " = ")
		if ok && !strings.Contains(Default(), "\n"+key+" = ") {
			t.Errorf("default.toml lacks %s", key)
		}
	}
}

func TestLoad(t *testing.T) {
	for name, tc := range map[string]struct {
		text string
		want []string // in the error
	}{
		"empty":          {"", nil},
		"override":       {"root = '/x'\n[fetch]\nconcurrent = 4\nbackground = 2", nil},
		"unknown key":    {"[fetch]\nconcurent = 4", []string{"concurent", "2|"}},
		"syntax":         {"root = ", []string{"root"}},
		"relative":       {"root = 'x'", []string{`root: "x" is not an absolute path`}},
		"transport":      {"transport = 'pigeon'", []string{"pigeon"}},
		"two at once":    {"log_level = 'loud'\nlog_format = 'xml'", []string{"loud", "xml"}},
		"background":     {"[fetch]\nconcurrent = 2\nbackground = 3", []string{"fetch.background"}},
		"span size":      {"[index]\nspan_size = 5000", []string{"index.span_size: 5kB is not a multiple of 4KiB"}},
		"duration":       {"[registry]\nstall = 'soon'", []string{`"soon" is not a duration`, "~~~~~~", `"1m30s"`}},
		"negative":       {"[registry]\nstall = '-1s'", []string{"negative"}},
		"no time at all": {"[fetch]\ntimeout = '0s'", []string{"fetch.timeout: 0s is not between 1s and 24h0m0s"}},
		"long socket":    {"address = '/" + strings.Repeat("x", 120) + "'", []string{"107"}},

		// Go's nanoseconds, if the number were taken.
		"duration without unit": {"[fetch]\ntimeout = 30", []string{"2| timeout = 30", "|           ~~ 30 has no unit", `write "30s"`}},
		"the same as a string":  {"[fetch]\ntimeout = '30'", []string{"30 has no unit", `write "30s"`}},
		"a fraction of one":     {"[fetch]\ntimeout = 1.5", []string{"1.5 has no unit", `write "1.5s"`}},
		"a switch for a time":   {"[fetch]\ntimeout = true", []string{`"true" is not a duration`, "~~~~"}},
		"too short":             {"[fetch]\ntimeout = '30ns'", []string{"fetch.timeout: 30ns is not between"}},
		"too long":              {"[registry]\nstall = '9000h'", []string{"registry.stall: 9000h0m0s is not between"}},
		"backoff":               {"[registry]\nbackoff = '10s'\nmax_backoff = '1s'", []string{"registry.backoff: 10s is longer than registry.max_backoff, 1s"}},
		"one socket":            {"address = '/run/x.sock'\nstatus_address = '/run//x.sock'", []string{"status_address", "two paths"}},
		"size":                  {"[fetch]\nmax_bytes = '4 apples'", []string{`"4 apples" is not a size`, `"64MiB"`, "2|"}},
		"half a byte":           {"[fetch]\nmax_bytes = 1.5", []string{`"1.5" is not a size`, "2|"}},
		"large size":            {"[cache]\nmax_bytes = '9999999TB'", []string{"is not a size"}},
		"endless size":          {"[cache]\nmax_bytes = 'InfTB'", []string{"is not a size"}},
		"number wanted":         {"[fetch]\nconcurrent = 'many'", []string{"fetch.concurrent must be a whole number, not a string", "2|"}},
		"string wanted":         {"root = 5", []string{"root must be a string, not an integer"}},
		"switch wanted":         {"anchor = 'yes'", []string{"anchor must be true or false, not a string"}},
		"list wanted":           {"[registry]\nhosts_dirs = '/etc'", []string{"registry.hosts_dirs must be a list of strings, not a string"}},
		"table wanted":          {"fetch = 5", []string{"fetch must be a table, not an integer"}},

		"this version":      {"version = 1", nil},
		"another version":   {"version = 2\n[new]\nkey = 1", []string{"version 2 of the configuration file", "version 1 only"}},
		"a version in text": {"version = '1'", []string{"version must be the number 1"}},
		"all at once": {
			"transport = 'pigeon'\nroot = 5\n[fetch]\nconcurent = 4\ntimeout = 30\nmax_bytes = '1GiB'\n[registry]\nattempts = 'x'",
			[]string{
				"pigeon", "2| root = 5", "root must be a string", "unknown key fetch.concurent", "4| concurent", "5| timeout = 30", "30 has no unit",
				"fetch.max_bytes: 1GiB is not between 64KiB and 256MiB", "8| attempts", "a whole number",
			},
		},
		"a value of many lines": {"[registry]\nattempts = [\n1,\n2]\nstall = 'soon'", []string{"registry.attempts must be a whole number"}},
		"a table for a value":   {"[root]\naddress = 5", []string{"1| [root]", "a table in a string"}},

		"equal limits":  {"[cachefiles.limits]\nbrun = 5", []string{"cachefiles.limits: bstop 1, bcull 5, brun 5: 0 <= stop < cull < run < 100 is needed"}},
		"all is run":    {"[cachefiles.limits]\nbrun = 100", []string{"brun 100"}},
		"no stop":       {"[cachefiles.limits]\nfstop = -1", []string{"fstop -1"}},
		"half of zeros": {"[cachefiles.limits]\nfrun = 0\nfcull = 0\nfstop = 0", []string{"frun 0"}},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "config.toml")
			if err := os.WriteFile(path, []byte(tc.text), 0o600); err != nil {
				t.Fatal(err)
			}
			c, err := Load(path)
			if tc.want == nil {
				if err != nil || c.Registry.Attempts != 6 {
					t.Fatal(c, err)
				}
				return
			}
			if err == nil {
				t.Fatal("accepted")
			}
			for _, want := range tc.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("got %v, want %q", err, want)
				}
			}
			for _, word := range []string{"struct field", "config.", "int64"} { // Go's
				if strings.Contains(strings.ReplaceAll(err.Error(), path, ""), word) {
					t.Errorf("%v: speaks of %q", err, word)
				}
			}
		})
	}
}

func TestSizesAndDurations(t *testing.T) {
	path := filepath.Join(t.TempDir(), "config.toml")
	text := "[fetch]\nmax_bytes = '64MiB'\ntimeout = '1m30s'\n[cache]\nmax_bytes = '10GB'\n[backfill]\nrate = 1000000\n[index]\nspan_size = '128 KiB'\nstop_grain = '8192'\n"
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := Load(path)
	if err != nil {
		t.Fatal(err)
	}
	got := []Size{c.Fetch.MaxBytes, c.Cache.MaxBytes, c.Backfill.Rate, c.Index.SpanSize, c.Index.Grain}
	if want := []Size{64 << 20, 10e9, 1e6, 128 << 10, 8192}; !slices.Equal(got, want) {
		t.Errorf("sizes %v, want %v", got, want)
	}
	for size, want := range map[Size]string{0: "0B", 1: "1B", 4096: "4KiB", 64 << 20: "64MiB", 10e9: "10GB", 1e6 + 1: "1000001B", 3 << 40: "3TiB"} {
		var back Size
		if err := back.UnmarshalText([]byte(size.String())); size.String() != want || back != size || err != nil {
			t.Errorf("%d is written %s and read as %d: %v", int64(size), size, int64(back), err)
		}
	}
	if c.Fetch.Timeout.Duration != 90*time.Second {
		t.Errorf("timeout %s", c.Fetch.Timeout)
	}
}

// TestErrorsAreSorted has a file with many faults give the same text each time.
func TestErrorsAreSorted(t *testing.T) {
	c := &Config{}
	err := c.Check()
	if err == nil {
		t.Fatal("an empty configuration is good")
	}
	var keys []string
	for line := range strings.Lines(err.Error()) {
		key, _, _ := strings.Cut(line, ":")
		keys = append(keys, key)
	}
	if !slices.IsSorted(keys) || len(keys) < 10 {
		t.Errorf("keys in this order: %q", keys)
	}
}
