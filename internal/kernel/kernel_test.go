package kernel

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/lacuna-snapshotter/lacuna/erofs"
	"github.com/lacuna-snapshotter/lacuna/internal/feature"
	"github.com/lacuna-snapshotter/lacuna/internal/hostcheck"
	"github.com/lacuna-snapshotter/lacuna/internal/pagetest"
)

// TestProbes has each feature that this kernel should have found, and each that it
// should not have missing. cachefiles is left out of distributions' kernels.
func TestProbes(t *testing.T) {
	hostcheck.Root(t)
	for _, f := range Features {
		t.Run(f.Name, func(t *testing.T) {
			err := f.Check()
			t.Log(err)
			if f == Fscache || f == Restore {
				if err != nil && !strings.Contains(err.Error(), f.Needs()) {
					t.Error(err)
				}
				return
			}
			hostcheck.Feature(t, f)
		})
	}
	if err := Transports[2].Check(); Transports[2].Name != "fuse" || err != nil {
		t.Errorf("%s: %v", Transports[2].Name, err)
	}
}

// TestProbesUndo has nothing left of the probes.
func TestProbesUndo(t *testing.T) {
	hostcheck.Root(t)
	loops := func() map[string][]string {
		l, err := erofs.Loops()
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	for _, probe := range []func() error{probeEROFS, probeEROFSFile, probePreContent, probeFscache, probeRestore, probeFUSE, probeLoop, probeFreezer} {
		_ = probe() // the first time loads modules, for example
	}
	before := descriptors(t)
	for _, f := range Features {
		_ = f.Probe()
	}
	if after := descriptors(t); after != before {
		t.Errorf("%d descriptors, %d before", after, before)
	}
	for path := range loops() {
		if strings.Contains(path, memfdName) {
			t.Errorf("a loop device is left: %s", path)
		}
	}
	if left, err := filepath.Glob("/var/tmp/lacuna-probe-*"); err != nil || len(left) > 0 {
		t.Errorf("left: %q, %v", left, err)
	}
}

func descriptors(t *testing.T) int {
	t.Helper()
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(list)
}

func TestTransportNeedsOneWay(t *testing.T) {
	yes := &feature.Feature{Name: "yes", Probe: func() error { return nil }}
	no := &feature.Feature{Name: "no", Probe: func() error { return feature.ErrMissing }}
	for name, tc := range map[string]struct {
		needs [][]*feature.Feature
		can   bool
	}{
		"all of one":    {[][]*feature.Feature{{yes, yes}}, true},
		"the other way": {[][]*feature.Feature{{yes, no}, {yes}}, true},
		"one is lacked": {[][]*feature.Feature{{yes, no}}, false},
	} {
		if err := (Transport{Needs: tc.needs}).Check(); (err == nil) != tc.can {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestPage(t *testing.T) {
	var b strings.Builder
	b.WriteString("| feature | Linux | built with | needed for |\n|---|---|---|---|\n")
	for _, f := range Features {
		fmt.Fprintf(&b, "| %s | %s | %s | %s |\n", f.Name, f.Releases(), f.Config, f.For)
	}
	b.WriteString("\n| transport | needs |\n|---|---|\n")
	for _, tr := range Transports {
		var ways []string
		for _, way := range tr.Needs {
			var names []string
			for _, f := range way {
				names = append(names, f.Name)
			}
			ways = append(ways, strings.Join(names, ", "))
		}
		fmt.Fprintf(&b, "| %s | %s |\n", tr.Name, strings.Join(ways, "; or "))
	}
	pagetest.Section(t, "../../docs/kernel.md", "features", b.String())
}

// TestReleasesAreTheSameEverywhere compares what errors and the configuration say
// with the table.
func TestReleasesAreTheSameEverywhere(t *testing.T) {
	if text := (&erofs.MountError{Op: "mount", Target: "/t", Err: unix.ENOTBLK}).Error(); !strings.Contains(text, EROFSFile.Needs()) {
		t.Errorf("%s does not say %s", text, EROFSFile.Needs())
	}
	b, err := os.ReadFile("../../config/default.toml")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"fanotify (Linux " + PreContent.Releases() + ")", "cachefiles (" + Fscache.Releases(), "fuse (" + EROFSFile.Releases() + ",",
	} {
		if !strings.Contains(string(b), want) {
			t.Errorf("default.toml does not say %q", want)
		}
	}
}
