// Command demo shows what lacuna is for, with real parts: it builds an image of
// Debian packages, pushes it to a registry with its index, runs it over a slow
// line with lacuna and with overlayfs, compares what both containers see, and
// prints a timeline.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/lacuna-snapshotter/lacuna/integration/harness"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
	same, err := demo(ctx)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
	}
	if err != nil || !same {
		os.Exit(1)
	}
}

func demo(ctx context.Context) (same bool, err error) {
	e, err := harness.FromSource()
	if err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, e.Close()) }()
	s, err := prepare(ctx, e)
	if err != nil {
		return false, err
	}
	return s.compare(ctx)
}

// scene is all that runs.
type scene struct {
	env        *harness.Env
	containerd *harness.Containerd
	image      *harness.Published
	size       int64
}

func prepare(ctx context.Context, e *harness.Env) (*scene, error) {
	fmt.Println("building an image: Debian, python3 with numpy, scipy and pandas, a small application")
	image, err := e.DebianImage(ctx, "demo", "python3", "python3-numpy", "python3-scipy", "python3-pandas")
	if err != nil {
		return nil, err
	}
	s := &scene{env: e}
	if s.size, err = image.Size(); err != nil {
		return nil, err
	}
	fmt.Printf("pushing it, %d layers of %.1f MB gzip, to a registry; lacunactl index create --push\n", len(image.Layers), float64(s.size)/1e6)
	if s.image, err = e.Publish(ctx, image, "/demo/python:latest", harness.Slow); err != nil {
		return nil, err
	}
	fmt.Print(indent(s.image.Out))
	if _, err := e.StartDaemon("backfill.quiet = \"3s\""); err != nil {
		return nil, err
	}
	s.containerd, err = e.StartContainerd("lacuna", "")
	return s, err
}

// tree walks and hashes everything in the container: names, modes, owners,
// times, links, contents.
const tree = `
import hashlib, os, stat, sys
for top in ("/bin", "/sbin", "/lib", "/lib64", "/boot", "/etc", "/home", "/media", "/mnt", "/opt", "/root", "/srv", "/tmp", "/usr", "/var", "/app"):
    if not os.path.lexists(top):
        continue
    todo = [top]
    while todo:
        p = todo.pop()
        st = os.lstat(p)
        if p in ("/etc/hosts", "/etc/hostname", "/etc/resolv.conf"):
            continue
        what = ""
        if stat.S_ISLNK(st.st_mode):
            what = os.readlink(p)
        elif stat.S_ISREG(st.st_mode):
            with open(p, "rb") as f:
                what = hashlib.file_digest(f, "sha256").hexdigest()
        elif stat.S_ISDIR(st.st_mode):
            todo.extend(sorted((os.path.join(p, n) for n in os.listdir(p)), reverse=True))
        size = 0 if stat.S_ISDIR(st.st_mode) else st.st_size
        print(p.encode(errors="surrogateescape"), oct(st.st_mode), st.st_uid, st.st_gid, size, st.st_mtime_ns, st.st_nlink if size else "", what)
`

func (s *scene) compare(ctx context.Context) (bool, error) {
	fmt.Printf("\na line of %.0f Mbit/s with a round trip of %s\n", harness.Slow.Rate/1e6, harness.Slow.RoundTrip)
	lazy, err := s.run(ctx, "lacuna")
	if err != nil {
		return false, err
	}
	full, err := s.run(ctx, "overlayfs")
	if err != nil {
		return false, err
	}
	status, err := s.env.Lacunactl(ctx, "status")
	if err != nil {
		return false, err
	}
	fmt.Print("lacunactl status, after the walk\n" + indent(status))
	same := lazy.tree == full.tree && len(lazy.tree) > 0
	if !same {
		explain(lazy.tree, full.tree)
	}
	word := "identical"
	if !same {
		word = "differs"
	}
	fmt.Printf("\nthe whole tree, %d names, walked and hashed in both containers: %s\n", strings.Count(lazy.tree, "\n"), word)
	fmt.Printf("demo: ready %.2f overlayfs %.2f ratio %.2f bytes %.1f%% tree %s\n",
		lazy.Ready.Seconds(), full.Ready.Seconds(), full.Ready.Seconds()/lazy.Ready.Seconds(),
		100*float64(lazy.Bytes)/float64(s.size), word)
	return same, nil
}

type result struct {
	harness.Start
	tree string
}

func (s *scene) run(ctx context.Context, snapshotter string) (result, error) {
	var r result
	var err error
	if r.Start, err = s.containerd.PullAndRun(ctx, s.image.Link, snapshotter, s.image.Ref, "demo-"+snapshotter); err != nil {
		return r, err
	}
	fmt.Printf("\n%s\n", snapshotter)
	fmt.Printf("  %6.2f s  pulled\n", r.Pull.Seconds())
	fmt.Printf("  %6.2f s  ready, with %.1f MB fetched, %.1f %% of the image\n", r.Ready.Seconds(), float64(r.Bytes)/1e6, 100*float64(r.Bytes)/float64(s.size))
	fmt.Printf("  %6.2f s  ended; the container's output:\n", r.End.Seconds())
	fmt.Print(indent(indent(r.Out)))
	r.tree, err = s.containerd.RunIn(ctx, snapshotter, s.image.Ref, "tree-"+snapshotter, "python3", "-c", tree)
	return r, err
}

func indent(text string) string {
	return "    " + strings.ReplaceAll(strings.TrimRight(text, "\n"), "\n", "\n    ") + "\n"
}

// explain prints the first lines in which two listings differ.
func explain(a, b string) {
	x, y := strings.Split(a, "\n"), strings.Split(b, "\n")
	shown := 0
	for i := 0; i < max(len(x), len(y)) && shown < 10; i++ {
		var p, q string
		if i < len(x) {
			p = x[i]
		}
		if i < len(y) {
			q = y[i]
		}
		if p != q {
			fmt.Printf("  lacuna    %s\n  overlayfs %s\n", p, q)
			shown++
		}
	}
}
