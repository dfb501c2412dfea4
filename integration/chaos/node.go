package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lacuna-snapshotter/lacuna/integration/harness"
	"github.com/lacuna-snapshotter/lacuna/internal/procs"
	"github.com/lacuna-snapshotter/lacuna/internal/statusapi"
)

// node is a daemon, containerd and a registry with one image.
type node struct {
	env        *harness.Env
	transport  string
	link       *harness.Link
	containerd *harness.Containerd
	daemon     *harness.Daemon
	anchored   bool // whether the next daemon is to have an anchor
	backfill   bool // whether layers are filled in the background
	ref        string
	expected   string // file of digests
	containers int
}

// newNode starts everything and learns the image's files from overlayfs.
func newNode(ctx context.Context, e *harness.Env, transport string) (*node, error) {
	n := &node{env: e, transport: transport, expected: e.Path("expected"), anchored: true}
	image, err := e.Numpy(ctx)
	if err != nil {
		return nil, err
	}
	image.Cmd = []string{"true"}
	p, err := e.Publish(ctx, image, "/test/numpy:latest", harness.Fast)
	if err != nil {
		return nil, err
	}
	n.link, n.ref = p.Link, p.Ref
	if err := e.OwnDisk(ctx, "2G"); err != nil {
		return nil, err
	}
	if err := n.start(); err != nil {
		return nil, err
	}
	if n.containerd, err = e.StartContainerd("lacuna", ""); err != nil {
		return nil, err
	}
	if err := n.pull(ctx, "overlayfs"); err != nil {
		return nil, err
	}
	// A part of the image: large files, and many files.
	out, err := n.containerd.RunIn(ctx, "overlayfs", n.ref, "expected", "sh", "-c",
		"find /usr/bin /usr/lib/x86_64-linux-gnu /usr/lib/python3 -xdev -type f -print0 | sort -z | xargs -0 sha256sum")
	if err != nil {
		return nil, err
	}
	return n, errors.Join(os.WriteFile(n.expected, []byte(out), 0o644), os.WriteFile(e.Path("reader.py"), []byte(reader), 0o644))
}

func (n *node) start() (err error) {
	n.daemon, err = n.env.StartDaemon(fmt.Sprintf("transport = %q\nfuse.loop = %v\nanchor = %v\nfetch.timeout = \"2m\"\nbackfill.enabled = %v\nbackfill.quiet = \"50ms\"",
		strings.TrimSuffix(n.transport, "-loop"), n.throughLoop(), n.anchored, n.backfill))
	return err
}

// throughLoop reports whether layers are mounted through loop devices. Then a
// container that has read EIO after everything was killed reads right bytes after
// the next start.
func (n *node) throughLoop() bool { return n.transport == "fuse-loop" }

func (n *node) pull(ctx context.Context, snapshotter string) error {
	return n.containerd.Pull(ctx, snapshotter, n.ref)
}

// pullLazily pulls with our snapshotter, and fails if a layer was left to containerd's
// unpack: such a layer needs no daemon.
func (n *node) pullLazily(ctx context.Context) error {
	if err := n.pull(ctx, "lacuna"); err != nil {
		return err
	}
	st, err := n.status(ctx)
	if err == nil && (st.Fallbacks > 0 || st.Filling == 0) {
		err = fmt.Errorf("the pull was not lazy: %+v", st)
	}
	return err
}

// status asks the daemon.
func (n *node) status(ctx context.Context) (st statusapi.Status, err error) {
	out, err := n.env.Lacunactl(ctx, "--json", "status")
	if err != nil {
		return st, err
	}
	return st, json.Unmarshal([]byte(out), &st)
}

// forget removes the image's lazy layers, so that the next pull finds holes.
func (n *node) forget(ctx context.Context) error {
	if _, err := n.containerd.Ctr(ctx, "images", "rm", "--sync", n.ref); err != nil {
		return err
	}
	// Not only unmounted: a layer that a process can still reach would be used again,
	// complete as it is, by the next pull.
	var st statusapi.Status
	for range 600 {
		var err error
		if st, err = n.status(ctx); err != nil {
			return err
		}
		if st.Filling+st.Complete+st.Evicted+st.Leaving+st.Quarantined == 0 {
			return nil
		}
		time.Sleep(100 * time.Millisecond)
	}
	return fmt.Errorf("layers are left: %+v", st)
}

// holders are the keepers that hold the transport's device: one that was just started is
// given it a moment later.
func (n *node) holders() (list []int, err error) {
	pids, err := n.keepers()
	for _, pid := range pids {
		links, _ := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
		for _, link := range links {
			if target, err := os.Readlink(link); err == nil && (target == "/dev/fuse" || target == "anon_inode:[fanotify]") {
				list = append(list, pid)
				break
			}
		}
	}
	return list, err
}

// keepers are the processes that hold descriptors for the daemon and can be
// killed.
func (n *node) keepers() ([]int, error) { return procs.Find("keeper", n.daemon.Root) }

// anchors are those that are frozen.
func (n *node) anchors() ([]int, error) { return procs.Find("anchor", n.daemon.Root) }

// killAt kills processes within as short a time as possible.
func killAt(pids ...int) {
	for _, pid := range pids {
		_ = unix.Kill(pid, unix.SIGKILL)
	}
}
