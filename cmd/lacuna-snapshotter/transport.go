package main

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/lacuna-snapshotter/lacuna/config"
	"github.com/lacuna-snapshotter/lacuna/erofs"
	"github.com/lacuna-snapshotter/lacuna/ondemand"
	"github.com/lacuna-snapshotter/lacuna/ondemand/cachefiles"
	"github.com/lacuna-snapshotter/lacuna/ondemand/fanotify"
	"github.com/lacuna-snapshotter/lacuna/ondemand/fusefile"
	"github.com/lacuna-snapshotter/lacuna/ondemand/journal"
	"github.com/lacuna-snapshotter/lacuna/ondemand/keeper"
	"github.com/lacuna-snapshotter/lacuna/snapshot/layer"
)

// keeperCount is how many processes besides this one hold the descriptors: when
// the daemon and one of them are killed together, two are left while the next
// daemon comes to replace what is missing.
const keeperCount = 3

// Labels of what the keepers hold. Those of cachefiles' objects are the
// transport's own.
const (
	fanotifyGroup    = "fanotify group"
	fanotifyJournal  = "fanotify journal"
	cachefilesDevice = "cachefiles device"
	fuseDevice       = "fuse device"
	fuseJournal      = "fuse journal"
)

// transport is the chosen transport with the keepers of its descriptors.
type transport struct {
	ondemand.Transport
	adopted bool     // it serves the mounts of an earlier daemon
	labels  []string // of what a takeover needs
	passed  []error  // why each that comes before it in "auto" was not chosen
	keepers *keeper.Set
	log     *slog.Logger
}

// opener makes a transport, from what an earlier daemon has left where found
// has its label.
type opener struct {
	name   string
	labels []string // of what is kept for a takeover, what readers wait on last
	// usable reports whether what is found suffices for a takeover.
	usable func(found map[string]*os.File) bool
	open   func(*config.Config, *ondemand.Engine, *transport, map[string]*os.File) (ondemand.Transport, error)
}

// openers are in the order in which "auto" tries them.
var openers = []opener{
	{
		"fanotify",
		[]string{fanotifyJournal, fanotifyGroup},
		// Whatever else is lost: without the group holes read as zeros.
		func(found map[string]*os.File) bool { return found[fanotifyGroup] != nil },
		openFanotify,
	},
	{
		"cachefiles",
		[]string{cachefilesDevice},
		func(found map[string]*os.File) bool { return found[cachefilesDevice] != nil },
		openCachefiles,
	},
	{
		"fuse",
		[]string{fuseJournal, fuseDevice},
		// The session's INIT is in the journal.
		func(found map[string]*os.File) bool {
			dev, j := found[fuseDevice], found[fuseJournal]
			return dev != nil && j != nil && fusefile.Alive(dev) && journal.Fits(j, fusefile.Journal) == nil
		},
		openFuse,
	},
}

// whole reports whether there is enough for a takeover. Else what there is is let go
// of: readers of a device that nobody reads would wait for ever.
func (o opener) whole(set *keeper.Set, found map[string]*os.File) (bool, error) {
	if o.usable(found) {
		return true, nil
	}
	var errs []error
	for _, label := range o.labels {
		if f := found[label]; f != nil {
			errs = append(errs, f.Close(), set.Drop(label))
			delete(found, label)
		}
	}
	return false, errors.Join(errs...)
}

// openTransport takes over what an earlier daemon left with its keepers or,
// where there is nothing, picks by configuration.
func openTransport(c *config.Config, engine *ondemand.Engine, set *keeper.Set, found map[string]*os.File, log *slog.Logger) (*transport, error) {
	var err error
	t := &transport{keepers: set, log: log}
	for _, o := range openers {
		whole, err := o.whole(set, found)
		if err != nil {
			return nil, errors.Join(err, set.Leave())
		}
		if !whole {
			continue
		}
		if c.Transport != "auto" && c.Transport != o.name {
			err := fmt.Errorf("layers are mounted with transport %s, the configuration says %s: keep it, or remove the containers and images first", o.name, c.Transport)
			return nil, errors.Join(err, set.Leave())
		}
		t.adopted, t.labels = true, o.labels
		log.Info("taking over from the keepers", "transport", o.name)
		if t.Transport, err = o.open(c, engine, t, found); err != nil {
			return nil, errors.Join(err, set.Leave())
		}
		return t, nil
	}
	// Before the keepers get anything: see there.
	if err := layer.Abandon(c.Root); err != nil {
		log.Warn("if this start is interrupted, mounts that nobody has served may be used on", "error", err)
	}
	var reasons []error
	for _, o := range openers {
		if c.Transport != "auto" && c.Transport != o.name {
			continue
		}
		if t.Transport, err = o.open(c, engine, t, nil); err == nil {
			t.labels, t.passed = o.labels, reasons
			for _, reason := range reasons {
				log.Info("passed over a transport", "chosen", o.name, "reason", reason)
			}
			return t, nil
		}
		reasons = append(reasons, fmt.Errorf("transport %s cannot be used: %w", o.name, err))
	}
	return nil, errors.Join(append(reasons, set.End())...)
}

func openFanotify(c *config.Config, _ *ondemand.Engine, t *transport, found map[string]*os.File) (ondemand.Transport, error) {
	if found != nil {
		if err := t.renewJournal(found); err != nil {
			return nil, err
		}
	}
	group, j, err := t.journalled(found, fanotifyGroup, fanotifyJournal, fanotify.Journal, func() (*os.File, error) {
		if err := fanotify.Probe(c.Root); err != nil {
			return nil, err
		}
		return fanotify.NewGroup()
	})
	if err != nil {
		return nil, err
	}
	return fanotify.Serve(group, j, t.log)
}

// renewJournal replaces a journal of fanotify's that is lost or of another version.
// Who waits for an answer to what was in it gets EIO.
func (t *transport) renewJournal(found map[string]*os.File) error {
	reason := errors.New("it is lost")
	if f := found[fanotifyJournal]; f != nil {
		if reason = journal.Fits(f, fanotify.Journal); reason == nil {
			return nil
		}
		f.Close()
	}
	t.log.Error("the last daemon's journal cannot be read: reads that it had not answered fail with EIO", "error", reason)
	if err := fanotify.Refuse(found[fanotifyGroup]); err != nil {
		return err
	}
	j, err := journal.New(fanotify.Journal)
	if err != nil {
		return err
	}
	found[fanotifyJournal] = j.File()
	return t.keepers.KeepFile(fanotifyJournal, j.File())
}

// journalled returns a device with its journal: those found or, where none were,
// new ones, which the keepers are given. The journal comes first: a device without
// one cannot be taken over.
func (t *transport) journalled(found map[string]*os.File, device, memory string, shape journal.Shape, open func() (*os.File, error)) (*os.File, *journal.Journal, error) {
	if found != nil {
		j, err := journal.Open(found[memory], shape)
		return found[device], j, err
	}
	dev, err := open()
	if err != nil {
		return nil, nil, err
	}
	j, err := journal.New(shape)
	if err != nil {
		return nil, nil, err
	}
	return dev, j, errors.Join(t.keepers.KeepFile(memory, j.File()), t.keepers.KeepFile(device, dev))
}

func openCachefiles(c *config.Config, engine *ondemand.Engine, t *transport, found map[string]*os.File) (ondemand.Transport, error) {
	dir := c.Cachefiles.Dir
	if dir == "" {
		dir = filepath.Join(c.Root, "cachefiles")
	}
	o := cachefiles.Options{Dir: dir, Engine: engine, Keeper: t.keepers, Log: t.log, Adopted: found != nil}
	device := found[cachefilesDevice]
	for label, f := range found {
		if !strings.HasPrefix(label, socketLabel) && label != cachefilesDevice {
			o.Kept = append(o.Kept, cachefiles.Kept{Label: label, File: f})
		}
	}
	if device == nil {
		l := c.Cachefiles.Limits
		var err error
		device, err = cachefiles.Open(cachefiles.Config{Dir: dir, Tag: c.Cachefiles.Tag, Limits: cachefiles.Limits(l)})
		if err != nil {
			return nil, err
		}
		if cachefiles.Restores(device) {
			if err := t.keepers.KeepFile(cachefilesDevice, device); err != nil {
				return nil, err
			}
		} else {
			t.log.Warn("this kernel cannot restore requests (Linux 6.8, and stable kernels since, can): when the daemon dies, reads fail until layers are mounted again")
			o.Keeper = nil
		}
	}
	return cachefiles.Serve(device, o)
}

func openFuse(c *config.Config, _ *ondemand.Engine, t *transport, found map[string]*os.File) (ondemand.Transport, error) {
	dir := filepath.Join(c.Root, "fuse")
	loops, err := erofs.Loops()
	if err != nil {
		return nil, err
	}
	device, j, err := t.journalled(found, fuseDevice, fuseJournal, fusefile.Journal, func() (*os.File, error) { return fusefile.Open(dir) })
	if err != nil {
		return nil, err
	}
	return fusefile.Serve(device, j, fusefile.Options{Dir: dir, Loop: c.FUSE.Loop, ChangeLoop: runChangeLoop, Loops: loops, Log: t.log})
}

const changeLoop = "change-loop" // the subcommand

// runChangeLoop is erofs.ChangeLoop in another process.
func runChangeLoop(device, from, to string, sparse bool) error {
	out, err := exec.Command("/proc/self/exe", changeLoop, device, from, to, "--sparse="+strconv.FormatBool(sparse)).CombinedOutput() //nolint:noctx // it waits for reads, which we answer
	if err != nil {
		return fmt.Errorf("%s: %w", strings.TrimSpace(string(out)), err)
	}
	return nil
}

// anchor has a process that cannot be killed hold what a takeover needs. It comes
// before the first mount is served.
func (t *transport) anchor(c *config.Config, on *sockets) error {
	if !c.Anchor {
		return errors.Join(errors.New("the configuration wants none"), keeper.EndAnchors(c.Root))
	}
	return t.keepers.Anchor(append(on.labels(), t.labels...)...)
}

// part is the end of a start that has touched nothing: keepers that hold nothing of an
// earlier daemon are for nobody.
func part(set *keeper.Set, found map[string]*os.File) error {
	if len(found) > 0 {
		return set.Leave()
	}
	return set.End()
}

// giveUp is the end of a start that came to nothing. What an earlier daemon has mounted
// and what this one has waits for the next. Where there is neither, callers are
// refused rather than left waiting, and no process stays.
func (t *transport) giveUp(on *sockets) error {
	if t.adopted || t.Needed() {
		return t.keepers.Leave()
	}
	return errors.Join(t.keepers.End(), on.remove())
}

// leave sees to it that readers wait for the next daemon, where any may come,
// and else ends the keepers. The kernel may know of more than the layers do: those
// that could not be opened have mounts too.
func (t *transport) leave(layers *layer.Set, on *sockets) error {
	if layers.Served() || t.Needed() {
		t.log.Info("layers need their transport; the keepers stay, and readers wait for the next start")
		return t.keepers.Leave()
	}
	return errors.Join(t.keepers.End(), on.remove())
}
