package main

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/lacuna-snapshotter/lacuna/config"
	"github.com/lacuna-snapshotter/lacuna/ondemand/fanotify"
	"github.com/lacuna-snapshotter/lacuna/ondemand/keeper"
	"github.com/lacuna-snapshotter/lacuna/snapshot"
)

// transport is the chosen transport with the keeper of its descriptors.
type transport struct {
	*fanotify.Server
	adopted bool // it serves the mounts of an earlier daemon
	held    []*os.File
	socket  string
	root    string
	keeper  chan *keeper.Keeper // the living one; empty while it is replaced
	log     *slog.Logger
}

// openTransport picks by configuration or, for "auto", by what the kernel has,
// and takes over what an earlier daemon left with its keeper.
func openTransport(c *config.Config, log *slog.Logger) (*transport, error) {
	if err := fanotify.Probe(c.Root); err != nil {
		return nil, fmt.Errorf("transport fanotify cannot be used with %s: %w", c.Root, err)
	}
	t := &transport{socket: filepath.Join(c.Root, "keeper.sock"), root: c.Root, keeper: make(chan *keeper.Keeper, 1), log: log}
	k, files, err := keeper.Take(t.socket)
	switch {
	case err == nil && len(files) == 2:
		t.adopted, t.held = true, files
		log.Info("taking over from the keeper")
	case err == nil || errors.Is(err, keeper.ErrNone):
		if t.held, err = newDescriptors(); err != nil {
			return nil, err
		}
		if k, err = t.start(); err != nil {
			return nil, err
		}
	default:
		return nil, err
	}
	journal, err := fanotify.OpenJournal(t.held[1])
	if err != nil {
		return nil, err
	}
	if t.Server, err = fanotify.Serve(t.held[0], journal, log); err != nil {
		return nil, err
	}
	t.keeper <- k
	go t.watch(k)
	return t, nil
}

func newDescriptors() ([]*os.File, error) {
	group, err := fanotify.NewGroup()
	if err != nil {
		return nil, err
	}
	journal, err := fanotify.NewJournal()
	if err != nil {
		return nil, err
	}
	return []*os.File{group, journal.File()}, nil
}

// start starts a keeper. Its command line has the root, to tell keepers apart.
func (t *transport) start() (*keeper.Keeper, error) {
	return keeper.Start(t.socket, t.held, "keeper", t.root)
}

// watch replaces a keeper that has died.
func (t *transport) watch(k *keeper.Keeper) {
	for {
		k.Wait()
		select {
		case <-t.keeper: // it has died
		default:
			return // it was left or ended
		}
		t.log.Warn("the keeper has died; starting another")
		var err error
		if k, err = t.start(); err != nil {
			t.log.Error("no keeper: the death of this process would let holes be read", "error", err)
			return
		}
		t.keeper <- k
	}
}

// leave sees to it that readers wait for the next daemon, if any layer has
// holes, and else ends the keeper.
func (t *transport) leave(layers *snapshot.Layers) error {
	k := <-t.keeper
	for _, l := range statuses(layers) {
		if l.State == "filling" {
			t.log.Info("layers have holes; the keeper stays, and their readers wait for the next start")
			return k.Leave()
		}
	}
	return k.End()
}

func statuses(layers *snapshot.Layers) []snapshot.LayerStatus {
	list, _ := layers.Status()
	return list
}
