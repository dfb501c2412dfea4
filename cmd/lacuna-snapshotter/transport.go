package main

import (
	"errors"
	"fmt"
	"log/slog"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/lacuna-snapshotter/lacuna/config"
	"github.com/lacuna-snapshotter/lacuna/internal/child"
	"github.com/lacuna-snapshotter/lacuna/ondemand"
	"github.com/lacuna-snapshotter/lacuna/ondemand/cachefiles"
	"github.com/lacuna-snapshotter/lacuna/ondemand/fanotify"
	"github.com/lacuna-snapshotter/lacuna/ondemand/fuse"
	"github.com/lacuna-snapshotter/lacuna/ondemand/hold"
	"github.com/lacuna-snapshotter/lacuna/ondemand/hold/socket"
	"github.com/lacuna-snapshotter/lacuna/snapshot/layer"
)

// drivers are in the order in which transport = "auto" tries them.
func drivers(c *config.Config) ondemand.Drivers {
	cache := c.Cachefiles.Dir
	if cache == "" {
		cache = filepath.Join(c.Root, "cachefiles")
	}
	return ondemand.Drivers{
		fanotify.Driver{Dir: c.Root},
		cachefiles.Driver{Config: cachefiles.Config{Dir: cache, Tag: c.Cachefiles.Tag, Limits: cachefiles.Limits(c.Cachefiles.Limits)}},
		fuse.Driver{Dir: filepath.Join(c.Root, "fuse"), Loop: c.FUSE.Loop, ChangeLoop: runChangeLoop},
	}
}

// openTransport adopts the transport of an earlier daemon or, where there is none to
// adopt, opens one. After an error the holders are left or released.
func openTransport(c *config.Config, engine *ondemand.Engine, holders *hold.Holders, adopted ondemand.Adopted, log *slog.Logger) (*ondemand.Opened, error) {
	n := ondemand.Node{Engine: engine, Holder: holders, Log: log}
	t, err := drivers(c).Adopt(c.Transport, n, adopted)
	if err != nil {
		return nil, errors.Join(err, holders.Leave())
	}
	if t != nil {
		return t, nil
	}
	// Before anything of the new transport is held: see Abandon.
	if err := layer.Abandon(c.Root); err != nil {
		log.Warn("if this start is interrupted, mounts that were not served for some time may be used again", "error", err)
	}
	if t, err = drivers(c).Open(c.Transport, n); err != nil {
		return nil, errors.Join(err, holders.ReleaseAll())
	}
	return t, nil
}

// anchor has a process that cannot be killed hold what the next daemon needs. It comes
// before the first mount is served.
func anchor(c *config.Config, holders *hold.Holders, on socket.Listeners, t *ondemand.Opened) error {
	if !c.Anchor {
		return errors.Join(errors.New("the configuration wants none"), hold.EndAnchors(c.Root))
	}
	return holders.Anchor(append(on.Labels(), t.Labels...)...)
}

// end leaves what is held to the next daemon if it is needed: readers and callers wait
// for it. Otherwise callers are refused rather than left waiting, and no process stays.
func end(holders *hold.Holders, on socket.Listeners, needed bool) error {
	if needed {
		return holders.Leave()
	}
	return errors.Join(holders.ReleaseAll(), on.Remove())
}

const changeLoop = "change-loop" // the subcommand

// runChangeLoop is erofs.ChangeLoop in another process.
func runChangeLoop(device, from, to string, sparse bool) error {
	out, err := child.CombinedOutput(exec.Command("/proc/self/exe", changeLoop, device, from, to, "--sparse="+strconv.FormatBool(sparse))) //nolint:noctx // it waits for reads, which this process answers
	if err != nil {
		return fmt.Errorf("%s: %w", strings.TrimSpace(string(out)), err)
	}
	return nil
}
