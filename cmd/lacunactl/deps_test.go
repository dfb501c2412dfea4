package main

import (
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// TestDoesNotLinkTheDaemon has the client depend on what clients need: neither on
// containerd's snapshot semantics nor on transports.
func TestDoesNotLinkTheDaemon(t *testing.T) {
	out, err := exec.Command("go", "list", "-deps", ".").Output()
	if err != nil {
		t.Fatal(err)
	}
	const module = "github.com/lacuna-snapshotter/lacuna/"
	deps := strings.Fields(string(out))
	if !slices.Contains(deps, module+"internal/statusapi") {
		t.Fatalf("go list -deps: %d packages", len(deps))
	}
	for _, path := range deps {
		name, ours := strings.CutPrefix(path, module)
		if first, _, _ := strings.Cut(name, "/"); ours && (first == "snapshot" || first == "ondemand") {
			t.Errorf("lacunactl links %s", name)
		}
	}
}
