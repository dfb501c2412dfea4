package metamorphic

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"time"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/contrib/snapshotservice"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"

	"github.com/lacuna-snapshotter/lacuna/fetcher/index"
	"github.com/lacuna-snapshotter/lacuna/fetcher/registry"
	"github.com/lacuna-snapshotter/lacuna/ondemand"
	"github.com/lacuna-snapshotter/lacuna/ondemand/fanotify"
	"github.com/lacuna-snapshotter/lacuna/ondemand/hold/inflight"
	"github.com/lacuna-snapshotter/lacuna/snapshot"
	snapshotlayer "github.com/lacuna-snapshotter/lacuna/snapshot/layer"
)

// request is what the driver asks of a node.
type request struct {
	Op string // open, close, status, evict or fill

	// Of open, with the descriptors of the group and its in-flight table.
	Root, Socket, Log string
	BootID            string
	Adopted           bool
	Backfill          bool
	MaxBytes          int64
	EvictEvery        time.Duration
}

// answer is what it says.
type answer struct {
	Error     string
	Layers    []snapshotlayer.Status
	Fallbacks []snapshotlayer.Fallback
	Served    bool
}

// node is the state of a node process.
type node struct {
	server      *fanotify.Server
	layers      *snapshotlayer.Set
	snapshotter *snapshot.Snapshotter
	service     *grpc.Server
	log         *os.File
}

const controlFile = 3 // of a node: the socket to the driver

// serveNode is the main function of a node process.
func serveNode() error {
	f := os.NewFile(controlFile, "control")
	c, err := net.FileConn(f)
	if err != nil {
		return err
	}
	conn := c.(*net.UnixConn)
	listener, err := install()
	if err != nil {
		return err
	}
	if _, _, err := conn.WriteMsgUnix([]byte("{}"), unix.UnixRights(listener), nil); err != nil {
		return err
	}
	unix.Close(listener)
	n := &node{}
	for {
		var q request
		files, err := receiveMessage(conn, &q)
		if err != nil {
			return nil //nolint:nilerr // the driver has gone
		}
		a, err := n.do(q, files)
		if err != nil {
			a.Error = err.Error()
		}
		if err := sendMessage(conn, a); err != nil {
			return err
		}
	}
}

func (n *node) do(q request, files []*os.File) (a answer, err error) {
	switch q.Op {
	case "open":
		return a, n.open(q, files)
	case "close":
		return a, n.close()
	case "status":
		a.Layers, a.Fallbacks = n.layers.Status()
		a.Served = n.layers.Served()
		return a, nil
	case "evict":
		return a, n.layers.Evict(context.Background())
	case "fill":
		return a, n.layers.Fill(context.Background())
	}
	return a, fmt.Errorf("no operation %q", q.Op)
}

// open starts a daemon's parts, as lacuna-snapshotter does.
func (n *node) open(q request, files []*os.File) (err error) {
	if len(files) != 2 {
		return fmt.Errorf("open with %d descriptors", len(files))
	}
	if n.log, err = os.OpenFile(q.Log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600); err != nil {
		return err
	}
	log := slog.New(slog.NewTextHandler(n.log, nil))
	j, err := inflight.Open(files[1], fanotify.InFlight)
	if err != nil {
		return err
	}
	if n.server, err = fanotify.Serve(files[0], j, log); err != nil {
		return err
	}
	client, err := registry.New(registry.Options{PlainHTTP: true, Retry: registry.Retry{Attempts: 2, Base: time.Millisecond}})
	if err != nil {
		return err
	}
	store, err := index.OpenStore(filepath.Join(q.Root, "index"))
	if err != nil {
		return err
	}
	engine, err := ondemand.New(ondemand.Options{Timeout: 5 * time.Second, BootID: q.BootID})
	if err != nil {
		return err
	}
	n.layers, err = snapshotlayer.Open(snapshotlayer.Config{
		Root: q.Root, Client: client, Store: store, Engine: engine, Transport: n.server, Adopted: q.Adopted, Log: log,
		Backfill: snapshotlayer.Backfill{Enabled: q.Backfill},
		Cache:    snapshotlayer.Cache{MaxBytes: q.MaxBytes, Every: q.EvictEvery},
	})
	if err != nil {
		return errors.Join(err, n.server.Close())
	}
	if n.snapshotter, err = snapshot.New(context.Background(), n.layers); err != nil {
		return errors.Join(err, n.server.Close())
	}
	n.server.Recover()
	n.service = grpc.NewServer()
	snapshotsapi.RegisterSnapshotsServer(n.service, snapshotservice.FromSnapshotter(n.snapshotter))
	l, err := net.Listen("unix", q.Socket)
	if err != nil {
		return err
	}
	service := n.service
	go func() { _ = service.Serve(l) }() // until close
	return nil
}

// close is a graceful end. Mounts stay.
func (n *node) close() error {
	if n.service == nil {
		return nil
	}
	n.service.GracefulStop()
	n.service = nil
	n.server.Drain()
	return errors.Join(n.snapshotter.Close(), n.server.Close(), n.log.Close())
}

// largestMessage between driver and node, in bytes.
const largestMessage = 1 << 20

func sendMessage(conn *net.UnixConn, v any, files ...*os.File) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	var rights []byte
	if len(files) > 0 {
		var fds []int
		for _, f := range files {
			fds = append(fds, int(f.Fd()))
		}
		rights = unix.UnixRights(fds...)
	}
	_, _, err = conn.WriteMsgUnix(b, rights, nil)
	return err
}

func receiveMessage(conn *net.UnixConn, v any) (files []*os.File, err error) {
	b, rights := make([]byte, largestMessage), make([]byte, unix.CmsgSpace(4*4))
	n, nrights, _, _, err := conn.ReadMsgUnix(b, rights)
	if err != nil {
		return nil, err
	}
	if n == 0 {
		return nil, errors.New("the other side has gone")
	}
	messages, err := unix.ParseSocketControlMessage(rights[:nrights])
	if err != nil {
		return nil, err
	}
	for _, m := range messages {
		fds, err := unix.ParseUnixRights(&m)
		if err != nil {
			return nil, err
		}
		for _, fd := range fds {
			unix.CloseOnExec(fd)
			files = append(files, os.NewFile(uintptr(fd), "received"))
		}
	}
	return files, json.Unmarshal(b[:n], v)
}
