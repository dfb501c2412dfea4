package main

import (
	"fmt"
	"log/slog"
	"os"

	"github.com/lacuna-snapshotter/lacuna/config"
	"github.com/lacuna-snapshotter/lacuna/ondemand/fanotify"
	"github.com/lacuna-snapshotter/lacuna/snapshot"
)

// transport is the chosen transport and whether it takes over live mounts.
type transport struct {
	*fanotify.Server
	adopted bool
}

// openTransport picks by configuration or, for "auto", by what the kernel has.
func openTransport(c *config.Config, log *slog.Logger) (*transport, error) {
	if err := os.MkdirAll(c.Root, 0o711); err != nil {
		return nil, err
	}
	if err := fanotify.Probe(c.Root); err != nil {
		return nil, fmt.Errorf("transport fanotify cannot be used with %s: %w", c.Root, err)
	}
	group, err := fanotify.NewGroup()
	if err != nil {
		return nil, err
	}
	return &transport{Server: fanotify.Serve(group, log)}, nil
}

// leave sees to what happens to the mounts when we are gone.
func (t *transport) leave(*snapshot.Layers) error { return nil }
