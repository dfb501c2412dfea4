package config

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/pelletier/go-toml/v2"
)

func TestDefaultsAreValidAndWhole(t *testing.T) {
	if _, err := Load(Path + ".none"); err == nil {
		t.Error("a named file that is missing is no error")
	}
	path := filepath.Join(t.TempDir(), "config.toml")
	if err := os.WriteFile(path, []byte(Default()), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := Load(path)
	if err != nil {
		t.Fatal(err)
	}
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
	for name, tc := range map[string]struct{ text, want string }{
		"empty":          {"", ""},
		"override":       {"root = '/x'\n[fetch]\nconcurrent = 4\nbackground = 2", ""},
		"unknown key":    {"[fetch]\nconcurent = 4", "concurent"},
		"syntax":         {"root = ", "root"},
		"relative":       {"root = 'x'", "root: \"x\" is not an absolute path"},
		"transport":      {"transport = 'pigeon'", "pigeon"},
		"two at once":    {"log_level = 'loud'\nlog_format = 'xml'", "xml"},
		"background":     {"[fetch]\nconcurrent = 2\nbackground = 3", "fetch.background"},
		"span size":      {"[index]\nspan_size = 5000", "multiple of 4096"},
		"duration":       {"[registry]\nstall = 'soon'", "soon"},
		"negative":       {"[registry]\nstall = '-1s'", "negative"},
		"no time at all": {"[fetch]\ntimeout = '0s'", "fetch.timeout"},
		"long socket":    {"address = '/" + strings.Repeat("x", 120) + "'", "107"},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "config.toml")
			if err := os.WriteFile(path, []byte(tc.text), 0o600); err != nil {
				t.Fatal(err)
			}
			c, err := Load(path)
			if tc.want == "" {
				if err != nil || c.Registry.Attempts != 6 {
					t.Fatal(c, err)
				}
			} else if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v, want %q", err, tc.want)
			}
		})
	}
}
