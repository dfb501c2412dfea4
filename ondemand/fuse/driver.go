package fuse

import (
	"errors"
	"os"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/lacuna-snapshotter/lacuna/erofs"
	"github.com/lacuna-snapshotter/lacuna/ondemand"
	"github.com/lacuna-snapshotter/lacuna/ondemand/hold/inflight"
)

// transportName is the transport's in configuration and logs.
const transportName = "fuse"

// Labels of what is held. Daemons of earlier builds hold it under the same.
const (
	deviceLabel = "fuse device"
	tableLabel  = "fuse journal"
)

// Driver opens the transport.
type Driver struct {
	// Dir, Loop and ChangeLoop are as in Options.
	Dir        string
	Loop       bool
	ChangeLoop func(device, from, to string, sparse bool) error
}

var _ ondemand.Driver = Driver{}

// Name implements ondemand.Driver.
func (Driver) Name() string { return transportName }

// Labels implements ondemand.Driver.
func (Driver) Labels() []string { return []string{tableLabel, deviceLabel} }

// Adopts implements ondemand.Driver. The INIT of the session is in the table.
func (Driver) Adopts(a ondemand.Adopted) bool {
	device, table := a[deviceLabel], a[tableLabel]
	return device != nil && table != nil && Alive(device) && inflight.Fits(table, InFlight) == nil
}

// Idle implements ondemand.Driver. What is mounted over a session is not known here.
func (Driver) Idle(ondemand.Adopted) bool { return false }

// Adopt implements ondemand.Driver.
func (d Driver) Adopt(n ondemand.Node, a ondemand.Adopted) (ondemand.Transport, error) {
	loops, err := erofs.Loops()
	if err != nil {
		return nil, err
	}
	device := a.Take(deviceLabel)
	table, err := inflight.Open(a.Take(tableLabel), InFlight)
	if err != nil {
		return nil, errors.Join(err, device.Close())
	}
	return d.serve(n, device, table, loops)
}

// Open implements ondemand.Driver.
func (d Driver) Open(n ondemand.Node) (ondemand.Transport, []syscall.Conn, error) {
	loops, err := erofs.Loops() // before Open, which may unmount a session that they name
	if err != nil {
		return nil, nil, err
	}
	table, err := inflight.New(InFlight)
	if err != nil {
		return nil, nil, err
	}
	device, err := Open(d.Dir)
	if err != nil {
		return nil, nil, errors.Join(err, table.Close())
	}
	t, err := d.serve(n, device, table, loops)
	if err != nil {
		return nil, nil, errors.Join(err, unmountSession(d.Dir))
	}
	return t, []syscall.Conn{table.File(), device}, nil
}

func (d Driver) serve(n ondemand.Node, device *os.File, table *inflight.Table, loops map[string][]string) (ondemand.Transport, error) {
	s, err := Serve(device, table, Options{Dir: d.Dir, Loop: d.Loop, ChangeLoop: d.ChangeLoop, Loops: loops, Log: n.Log})
	if err != nil {
		return nil, err // and no *Server in a Transport
	}
	return s, nil
}

// unmountSession unmounts a session, which need not be mounted.
func unmountSession(dir string) error {
	if err := unix.Unmount(dir, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil && !errors.Is(err, unix.EINVAL) {
		return &os.PathError{Op: "unmount", Path: dir, Err: err}
	}
	return nil
}
