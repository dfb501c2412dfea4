package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lacuna-snapshotter/lacuna/integration/harness"
	"github.com/lacuna-snapshotter/lacuna/internal/procs"
	"github.com/lacuna-snapshotter/lacuna/internal/statusapi"
)

// node is a machine's worth of parts, with one image.
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
func newNode(ctx context.Context, e *harness.Env, top, transport string) (*node, error) {
	n := &node{env: e, transport: transport, expected: e.Path("expected"), anchored: true}
	images := filepath.Join(top, "integration", "images")
	image, err := harness.BuildImage(ctx, e, filepath.Join(images, "build.sh"), filepath.Join(top, ".cache", "images"),
		"numpy", filepath.Join(images, "numpy"), "python3", "python3-numpy")
	if err != nil {
		return nil, err
	}
	image.Cmd = []string{"true"}
	registry, err := e.StartRegistry()
	if err != nil {
		return nil, err
	}
	if n.link, err = e.StartLink(registry, 1e9, 2*time.Millisecond); err != nil {
		return nil, err
	}
	if err := e.AllowHTTP(n.link.Addr); err != nil {
		return nil, err
	}
	if _, err := image.Push(ctx, registry+"/test/numpy:latest"); err != nil {
		return nil, err
	}
	if _, err := e.Run(ctx, "lacunactl", "index", "create", "--push", "--plain-http", "--store", e.Path("index"), registry+"/test/numpy:latest"); err != nil {
		return nil, err
	}
	n.ref = n.link.Addr + "/test/numpy:latest"
	if err := disk(ctx, e); err != nil {
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
	// A part of the image: what is large, and what is many.
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

// pullLazily pulls with ours, and makes sure that nothing was left to
// containerd's own unpack: there would be nothing to injure.
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
	// Not only unmounted: a layer that somebody can still reach would be taken up again,
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

// holders are the keepers that have the transport by now: one that was just
// started is given it a moment later.
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

// killAt ends processes as nearly at once as can be.
func killAt(pids ...int) {
	for _, pid := range pids {
		_ = unix.Kill(pid, unix.SIGKILL)
	}
}

// seen is what readers saw: files that they read, and those of them that were
// wrong or failed.
type seen struct {
	passes, files, wrong, failed int
	stall                        time.Duration
	reported, unreported         int // containers with wrong bytes
}

func (s *seen) add(o seen) {
	s.passes, s.files, s.wrong, s.failed = s.passes+o.passes, s.files+o.files, s.wrong+o.wrong, s.failed+o.failed
	s.reported, s.unreported = s.reported+o.reported, s.unreported+o.unreported
	s.stall = max(s.stall, o.stall)
}

// container is a reader that runs.
type container struct {
	id      string
	started chan struct{} // closed when it has read its first file
	done    chan struct{}

	// Of a container that is done.
	seen seen
	last int // failed reads of the last pass
	err  error
}

// read starts a container that reads the files a number of times.
func (n *node) read(ctx context.Context, passes int) (*container, error) {
	n.containers++
	c := &container{id: fmt.Sprintf("reader-%s-%d", n.transport, n.containers), started: make(chan struct{}), done: make(chan struct{})}
	cmd := exec.CommandContext(ctx, filepath.Join(n.env.Bin, "ctr"), "--address", n.containerd.Address, "-n", n.env.Namespace(), "run", "--rm", "--snapshotter", "lacuna",
		"--mount", "type=bind,src="+n.expected+",dst=/expected,options=rbind:ro",
		"--mount", "type=bind,src="+n.env.Path("reader.py")+",dst=/reader.py,options=rbind:ro",
		n.ref, c.id, "python3", "/reader.py", strconv.Itoa(passes))
	cmd.Env = append(os.Environ(), "PATH="+n.env.Bin+":"+os.Getenv("PATH"))
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		c.follow(out)
		if err := cmd.Wait(); err != nil {
			c.err = fmt.Errorf("container %s: %w: %s", c.id, err, stderr.String())
		}
		close(c.done)
	}()
	return c, nil
}

// follow takes what a reader prints, a file at a time: one that is killed by what
// it reads (its own code, when nobody serves that) has read the files before.
func (c *container) follow(out io.Reader) {
	failed := 0
	for s := bufio.NewScanner(out); s.Scan(); {
		what, stall, isFile := strings.Cut(s.Text(), " ")
		if !isFile {
			c.seen.passes++
			c.last, failed = failed, 0
			continue
		}
		if c.seen.files++; c.seen.files == 1 {
			close(c.started)
		}
		seconds, _ := strconv.ParseFloat(stall, 64)
		c.seen.stall = max(c.seen.stall, time.Duration(seconds*float64(time.Second)))
		switch what {
		case "wrong":
			c.seen.wrong++
		case "failed":
			c.seen.failed++
			failed++
		}
	}
}
