package fanotify

import (
	"errors"
	"os"
	"syscall"

	"github.com/lacuna-snapshotter/lacuna/internal/descriptor"
	"github.com/lacuna-snapshotter/lacuna/ondemand"
	"github.com/lacuna-snapshotter/lacuna/ondemand/hold/inflight"
)

// name is the transport's in configuration and logs.
const name = "fanotify"

// Labels of what is held. Daemons of earlier builds hold it under the same.
const (
	groupLabel = "fanotify group"
	tableLabel = "fanotify journal"
)

// Driver opens the transport.
type Driver struct {
	Dir string // the directory of the blobs
}

var _ ondemand.Driver = Driver{}

// Name implements ondemand.Driver.
func (Driver) Name() string { return name }

// Labels implements ondemand.Driver.
func (Driver) Labels() []string { return []string{tableLabel, groupLabel} }

// Adopts implements ondemand.Driver. The group is enough, whatever else is lost:
// without it holes read as zeros.
func (Driver) Adopts(a ondemand.Adopted) bool { return a[groupLabel] != nil }

// Idle implements ondemand.Driver.
func (Driver) Idle(a ondemand.Adopted) bool {
	list, err := marks(a[groupLabel])
	return err == nil && len(list) == 0
}

// Adopt implements ondemand.Driver.
func (Driver) Adopt(n ondemand.Node, a ondemand.Adopted) (ondemand.Transport, error) {
	group := a.Take(groupLabel)
	table, err := adoptTable(n, group, a.Take(tableLabel))
	if err != nil {
		return nil, errors.Join(err, group.Close())
	}
	return served(Serve(group, table, n.Log))
}

// adoptTable opens an earlier daemon's in-flight table. One that is lost or of
// another build is replaced: readers who wait for an answer to what was in it get EIO.
func adoptTable(n ondemand.Node, group, file *os.File) (*inflight.Table, error) {
	reason := errors.New("it is lost")
	if file != nil {
		if reason = inflight.Fits(file, InFlight); reason == nil {
			return inflight.Open(file, InFlight)
		}
		file.Close()
	}
	n.Log.Error("the in-flight table of the last daemon cannot be read: reads that it had not answered fail with EIO", "error", reason)
	if err := Refuse(group); err != nil {
		return nil, err
	}
	table, err := inflight.New(InFlight)
	if err != nil {
		return nil, err
	}
	if err := descriptor.Use(table.File(), func(fd int) error { return n.Holder.Hold(tableLabel, fd) }); err != nil {
		return nil, errors.Join(err, table.Close())
	}
	return table, nil
}

// Open implements ondemand.Driver.
func (d Driver) Open(n ondemand.Node) (ondemand.Transport, []syscall.Conn, error) {
	if err := Probe(d.Dir); err != nil {
		return nil, nil, err
	}
	table, err := inflight.New(InFlight)
	if err != nil {
		return nil, nil, err
	}
	group, err := NewGroup()
	if err != nil {
		return nil, nil, errors.Join(err, table.Close())
	}
	t, err := served(Serve(group, table, n.Log))
	return t, []syscall.Conn{table.File(), group}, err
}

// served keeps a nil Server from being a Transport.
func served(s *Server, err error) (ondemand.Transport, error) {
	if err != nil {
		return nil, err
	}
	return s, nil
}
