package main

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/lacuna-snapshotter/lacuna/integration/harness"
)

// program is a build of the daemon that can die at a point.
const program = "lacuna-snapshotter-faults"

// buildFaults makes that build.
func buildFaults(ctx context.Context) error {
	build := exec.CommandContext(ctx, "go", "build", "-tags", "faults", "-o", filepath.Join(".cache", "bin", program), "./cmd/lacuna-snapshotter")
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("build %s: %w\n%s", program, err, out)
	}
	return nil
}

// dieAt runs a build of the daemon that dies at a point, and starts it again each
// time.
func (n *node) dieAt(ctx context.Context, point string, times int) (total seen, err error) {
	deaths := 0
	for deaths < times {
		s, err := n.round(ctx, func(over <-chan struct{}) (err error) {
			n.env.Daemon, n.env.Environ = program, []string{"LACUNA_FAULT=" + point + "=1/40"}
			defer func() { // one that lives, for what the readers have left to do
				n.env.Daemon, n.env.Environ = "", nil
				n.daemon.Kill()
				err = errors.Join(err, n.start())
			}()
			n.daemon.Kill()
			for deaths < times {
				if err := n.start(); err != nil && !strings.Contains(err.Error(), "ended") {
					return err
				}
				select {
				case <-n.daemon.Done():
					deaths++
				case <-over:
					return nil
				case <-time.After(300 * time.Millisecond): // it has nothing to do
					if err := harness.DropCaches(); err != nil {
						return err
					}
				}
				select {
				case <-n.daemon.Done():
				default:
					n.daemon.Kill()
				}
			}
			return nil
		})
		total.add(s)
		if err != nil {
			return total, err
		}
	}
	return total, nil
}
