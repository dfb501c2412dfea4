package cachefiles

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"syscall"

	"github.com/lacuna-snapshotter/lacuna/ondemand"
)

// name is the transport's in configuration and logs.
const name = "cachefiles"

// deviceLabel is the label of the device. Daemons of earlier builds hold it under the
// same. Objects are held under labels of their own: see label.
const deviceLabel = "cachefiles device"

// Driver opens the transport.
type Driver struct{ Config }

var _ ondemand.Driver = Driver{}

// Name implements ondemand.Driver.
func (Driver) Name() string { return name }

// Labels implements ondemand.Driver.
func (Driver) Labels() []string { return []string{deviceLabel} }

// Adopts implements ondemand.Driver.
func (Driver) Adopts(a ondemand.Adopted) bool { return a[deviceLabel] != nil }

// Idle implements ondemand.Driver. The kernel does not tell which mounts have a cache.
func (Driver) Idle(ondemand.Adopted) bool { return false }

// Adopt implements ondemand.Driver.
func (d Driver) Adopt(n ondemand.Node, a ondemand.Adopted) (ondemand.Transport, error) {
	device := a.Take(deviceLabel)
	var objects []Held
	for label := range a {
		if _, _, _, err := parseLabel(label); err == nil {
			objects = append(objects, Held{label, a.Take(label)})
		}
	}
	return d.serve(n, device, Options{Holder: n.Holder, Adopted: true, Held: objects})
}

// Open implements ondemand.Driver.
func (d Driver) Open(n ondemand.Node) (ondemand.Transport, []syscall.Conn, error) {
	device, err := Open(d.Config)
	if err != nil {
		return nil, nil, err
	}
	if !Restores(device) {
		n.Log.Warn("this kernel cannot restore requests (Linux 6.8, and stable kernels since, can): when the daemon dies, reads fail until layers are mounted again")
		t, err := d.serve(n, device, Options{})
		return t, nil, err
	}
	t, err := d.serve(n, device, Options{Holder: n.Holder})
	return t, []syscall.Conn{device}, err
}

func (d Driver) serve(n ondemand.Node, device *os.File, o Options) (ondemand.Transport, error) {
	o.Dir, o.Engine, o.Log = d.Dir, n.Engine, n.Log
	s, err := Serve(device, o)
	if err != nil {
		return nil, err // and no *Server in a Transport
	}
	return s, nil
}

// label is the label of an object's descriptor.
func label(object uint32, volume, cookie string) string {
	return strconv.FormatUint(uint64(object), 10) + " " + strconv.Quote(volume) + " " + strconv.Quote(cookie)
}

func parseLabel(label string) (object uint32, volume, cookie string, err error) {
	if _, err = fmt.Sscanf(label, "%d %q %q", &object, &volume, &cookie); err != nil {
		err = errors.Join(fmt.Errorf("label %q is no object's", label), err)
	}
	return object, volume, cookie, err
}
