// Package snapshottest has what tests of a whole node share: a snapshotter with all
// its parts over one directory and fanotify, an image in a registry, and readers that
// are other processes.
package snapshottest

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/lacuna-snapshotter/lacuna/erofs"
	"github.com/lacuna-snapshotter/lacuna/fetcher/index"
	"github.com/lacuna-snapshotter/lacuna/fetcher/registry"
	"github.com/lacuna-snapshotter/lacuna/internal/descriptor"
	"github.com/lacuna-snapshotter/lacuna/internal/hostcheck"
	"github.com/lacuna-snapshotter/lacuna/internal/kernel"
	"github.com/lacuna-snapshotter/lacuna/ondemand"
	"github.com/lacuna-snapshotter/lacuna/ondemand/fanotify"
	"github.com/lacuna-snapshotter/lacuna/ondemand/hold/inflight"
	"github.com/lacuna-snapshotter/lacuna/snapshot"
	"github.com/lacuna-snapshotter/lacuna/snapshot/layer"
)

// Node is a snapshotter with all its parts, over one directory.
type Node struct {
	*snapshot.Snapshotter
	Layers *layer.Set
	Store  *index.Store
	Server *fanotify.Server
	Group  *os.File
}

// New starts a node and logs to the test.
func New(t *testing.T, root string) *Node {
	t.Helper()
	n, err := Start(t.Context(), root, nil, Log(t))
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// Start starts a node. The group, where given, is an earlier node's.
func Start(ctx context.Context, root string, group *os.File, log *slog.Logger) (*Node, error) {
	adopted := group != nil
	if !adopted {
		err := layer.Abandon(root)
		if err == nil {
			group, err = fanotify.NewGroup()
		}
		if err != nil {
			return nil, err
		}
	}
	return StartWith(ctx, root, group, adopted, log)
}

// StartWith is Start with a group that the caller has made, and holds.
func StartWith(ctx context.Context, root string, group *os.File, adopted bool, log *slog.Logger) (*Node, error) {
	server, err := Serve(group, log)
	if err != nil {
		return nil, err
	}
	n, err := Over(ctx, root, server, server, adopted, log)
	if err != nil {
		return nil, errors.Join(err, server.Close())
	}
	n.Group = group
	server.Recover()
	return n, nil
}

// Serve is fanotify's transport over a group, with an in-flight table of its own.
func Serve(group *os.File, log *slog.Logger) (*fanotify.Server, error) {
	j, err := inflight.New(fanotify.InFlight)
	if err != nil {
		return nil, err
	}
	return fanotify.Serve(group, j, log)
}

// Over starts a node whose layers are mounted by a transport, which may be the server
// itself or one that calls it. The server is the caller's after an error.
func Over(ctx context.Context, root string, transport ondemand.Transport, server *fanotify.Server, adopted bool, log *slog.Logger) (*Node, error) {
	n := &Node{Server: server}
	client, err := registry.New(registry.Options{PlainHTTP: true, Retry: registry.Retry{Attempts: 2, Base: time.Millisecond}})
	if err != nil {
		return nil, err
	}
	if n.Store, err = index.OpenStore(filepath.Join(root, "index")); err != nil {
		return nil, err
	}
	engine, err := ondemand.New(ondemand.Options{Timeout: 2 * time.Second}) // how long a reader waits for a dead registry
	if err != nil {
		return nil, err
	}
	n.Layers, err = layer.Open(layer.Config{
		Root: root, Client: client, Store: n.Store, Engine: engine, Transport: transport, Adopted: adopted, Log: log,
	})
	if err != nil {
		return nil, err
	}
	if n.Snapshotter, err = snapshot.New(ctx, n.Layers); err != nil {
		return nil, err
	}
	return n, nil
}

// Stop is a daemon's graceful end. Mounts stay.
func (n *Node) Stop() error {
	n.Server.Drain()
	return errors.Join(n.Close(), n.Server.Close())
}

// TearDown removes the mounts as well.
func (n *Node) TearDown() error {
	err := n.Stop()
	for _, l := range n.Status() {
		if l.Mountpoint != "" && erofs.Mounted(l.Mountpoint) {
			err = errors.Join(err, unix.Unmount(l.Mountpoint, unix.MNT_DETACH)) // no process reads: no need of erofs.Unmount
		}
	}
	return err
}

// Status lists the node's layers.
func (n *Node) Status() []layer.Status {
	list, _ := n.Layers.Status()
	return list
}

// Mountpoint is where an image's layer, of which there is a snapshot, is mounted. A
// layer that is not ready is made so.
func (n *Node) Mountpoint(t *testing.T, packed []byte) string {
	t.Helper()
	target := layer.Target{Layer: digest.FromBytes(packed)}
	err := n.Walk(t.Context(), func(_ context.Context, info snapshots.Info) error {
		if info.Labels["lacuna/layer"] == target.Layer.String() {
			target.Ref, target.Manifest = info.Labels["lacuna/image"], digest.Digest(info.Labels["lacuna/manifest"])
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	path, err := n.Layers.Mountpoint(t.Context(), target)
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// Hold keeps a node's group after the node has ended, as a keeper does.
func Hold(t *testing.T, n *Node) *os.File {
	t.Helper()
	var group *os.File
	err := descriptor.Use(n.Group, func(fd int) error {
		dup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
		group = os.NewFile(uintptr(dup), "group")
		return err
	})
	if err != nil {
		t.Fatal("the group was not held:", err)
	}
	return group
}

// NeedFanotify skips a test where the kernel or the user cannot use fanotify's
// pre-content events.
func NeedFanotify(t *testing.T) {
	hostcheck.Root(t)
	hostcheck.Feature(t, kernel.PreContent)
	if err := fanotify.Probe(t.TempDir()); err != nil {
		hostcheck.Missing(t, "a file system with pre-content events: "+err.Error())
	}
}

// Log logs to the test.
func Log(t *testing.T) *slog.Logger {
	return slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))
}
