package feature

import (
	"errors"
	"strings"
	"testing"
)

func TestCheckKeepsWhatItKnows(t *testing.T) {
	for name, tc := range map[string]struct {
		err    error
		probes int
	}{
		"there":     {nil, 1},
		"missing":   {ErrMissing, 1},
		"not known": {errors.New("operation not permitted"), 2},
	} {
		n := 0
		f := &Feature{Name: "a thing", Since: Version{6, 1}, Config: "CONFIG_THING", Probe: func() error { n++; return tc.err }}
		for range 2 {
			if err := f.Check(); !errors.Is(err, tc.err) {
				t.Errorf("%s: %v", name, err)
			}
		}
		if n != tc.probes {
			t.Errorf("%s: %d probes", name, n)
		}
		if err := f.Check(); err != nil && strings.Contains(err.Error(), "Linux 6.1 with CONFIG_THING") != errors.Is(err, ErrMissing) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestVersions(t *testing.T) {
	for release, want := range map[string]Version{"6.12.63+deb13-amd64": {6, 12}, "7.1-rc1": {7, 1}, "5.19.0": {5, 19}} {
		if got, err := ParseVersion(release); err != nil || got != want {
			t.Errorf("%s: %v, %v", release, got, err)
		}
	}
	if _, err := ParseVersion("x"); err == nil {
		t.Error("no version was read as one")
	}
	f := &Feature{Since: Version{5, 19}, Until: Version{7, 1}}
	for v, want := range map[Version]bool{{5, 4}: false, {5, 19}: true, {6, 9}: true, {7, 1}: true, {7, 2}: false, {6, 20}: true} {
		if f.Expected(v) != want {
			t.Errorf("%s expected: %v", v, !want)
		}
	}
	if f.Needs() != "Linux 5.19 to 7.1" {
		t.Error(f.Needs())
	}
	if release, err := Release(); err != nil || release == "" {
		t.Errorf("this kernel: %q, %v", release, err)
	}
}
