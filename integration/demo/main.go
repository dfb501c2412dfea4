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
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lacuna-snapshotter/lacuna/integration/harness"
)

const (
	rate      = 200e6                 // bits a second
	roundTrip = 20 * time.Millisecond // and for each new connection
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
	top, err := os.Getwd()
	if err != nil {
		return false, err
	}
	e, err := harness.New(filepath.Join(top, ".cache", "bin"))
	if err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, e.Close()) }()
	s, err := prepare(ctx, e, top)
	if err != nil {
		return false, err
	}
	return s.compare(ctx)
}

// scene is all that runs.
type scene struct {
	env        *harness.Env
	containerd *harness.Containerd
	link       *harness.Link
	ref        string
	size       int64
}

func prepare(ctx context.Context, e *harness.Env, top string) (*scene, error) {
	fmt.Println("building an image: Debian, python3 with numpy, scipy and pandas, a small application")
	images := filepath.Join(top, "integration", "images")
	image, err := harness.BuildImage(ctx, e, filepath.Join(images, "build.sh"), filepath.Join(top, ".cache", "images"),
		"demo", filepath.Join(images, "demo"), "python3", "python3-numpy", "python3-scipy", "python3-pandas")
	if err != nil {
		return nil, err
	}
	image.Cmd = []string{"python3", "/app/main.py"}
	size, err := image.Size()
	if err != nil {
		return nil, err
	}
	registry, err := e.StartRegistry()
	if err != nil {
		return nil, err
	}
	fmt.Printf("pushing it, %d layers of %.1f MB gzip, to a registry\n", len(image.Layers), float64(size)/1e6)
	ref := registry + "/demo/python:latest"
	if _, err := image.Push(ctx, ref); err != nil {
		return nil, err
	}
	fmt.Println("lacunactl index create --push")
	out, err := e.Run(ctx, "lacunactl", "index", "create", "--push", "--plain-http", "--store", e.Path("index"), ref)
	if err != nil {
		return nil, err
	}
	fmt.Print(indent(out))
	link, err := e.StartLink(registry, rate, roundTrip)
	if err != nil {
		return nil, err
	}
	if err := e.AllowHTTP(link.Addr); err != nil {
		return nil, err
	}
	if _, err := e.StartDaemon("backfill.quiet = \"3s\""); err != nil {
		return nil, err
	}
	c, err := e.StartContainerd("lacuna", "")
	return &scene{e, c, link, link.Addr + "/demo/python:latest", size}, err
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
	fmt.Printf("\na line of %.0f Mbit/s with a round trip of %s\n", rate/1e6, roundTrip)
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
	if r.Start, err = s.containerd.PullAndRun(ctx, s.link, snapshotter, s.ref, "demo-"+snapshotter); err != nil {
		return r, err
	}
	fmt.Printf("\n%s\n", snapshotter)
	fmt.Printf("  %6.2f s  pulled\n", r.Pull.Seconds())
	fmt.Printf("  %6.2f s  ready, with %.1f MB fetched, %.1f %% of the image\n", r.Ready.Seconds(), float64(r.Bytes)/1e6, 100*float64(r.Bytes)/float64(s.size))
	fmt.Printf("  %6.2f s  ended; the container's output:\n", r.End.Seconds())
	fmt.Print(indent(indent(r.Out)))
	r.tree, err = s.containerd.RunIn(ctx, snapshotter, s.ref, "tree-"+snapshotter, "python3", "-c", tree)
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
