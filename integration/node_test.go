package integration

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/lacuna-snapshotter/lacuna/integration/harness"
	"github.com/lacuna-snapshotter/lacuna/internal/hostcheck"
	"github.com/lacuna-snapshotter/lacuna/internal/kernel"
	"github.com/lacuna-snapshotter/lacuna/internal/statusapi"
	"github.com/lacuna-snapshotter/lacuna/ondemand/fanotify"
)

// node is a machine of a test's own, with a registry that misbehaves on demand and
// images of package images/reader, which are small.
type node struct {
	t          *testing.T
	env        *harness.Env
	registry   string // for pushing, always well
	addr       string // for pulling, through fault
	fault      atomic.Pointer[http.HandlerFunc]
	blobs      atomic.Int64 // requests for blobs that came
	containerd *harness.Containerd
	daemon     *harness.Daemon
	config     string
	content    map[string][]entry // of the layers that data made, by path
}

// newNode starts a registry and containerd, no daemon yet.
func newNode(t *testing.T) *node {
	t.Helper()
	hostcheck.Root(t)
	hostcheck.Feature(t, kernel.PreContent)
	if err := fanotify.Probe("/var/tmp"); err != nil {
		hostcheck.Missing(t, "a file system with pre-content events: "+err.Error())
	}
	hostcheck.Tool(t, "runc")
	bin, err := filepath.Abs("../.cache/bin")
	if err != nil {
		t.Fatal(err)
	}
	n := &node{t: t, content: map[string][]entry{}}
	if n.env, err = harness.New(bin); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() && n.daemon != nil {
			t.Log(n.daemon.Tail())
		}
		if err := n.env.Close(); err != nil {
			t.Error(err)
		}
	})
	if n.registry, err = n.env.StartRegistry(); err != nil {
		t.Fatal(err)
	}
	to := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: n.registry})
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.Contains(r.URL.Path, "/blobs/") {
			n.blobs.Add(1)
		}
		if f := n.fault.Load(); f != nil {
			(*f)(w, r)
			return
		}
		to.ServeHTTP(w, r)
	}))
	t.Cleanup(server.Close)
	n.addr = strings.TrimPrefix(server.URL, "http://")
	if err := n.env.AllowHTTP(n.addr); err != nil {
		t.Fatal(err)
	}
	return n
}

// pass is a fault that is none.
func (n *node) pass(w http.ResponseWriter, r *http.Request) {
	httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: n.registry}).ServeHTTP(w, r)
}

// fails has the registry answer with f, nil for well.
func (n *node) fails(f http.HandlerFunc) {
	if f == nil {
		n.fault.Store(nil)
		return
	}
	n.fault.Store(&f)
}

// run starts the daemon and, the first time, containerd.
func (n *node) run(config string) {
	n.t.Helper()
	n.config = config
	n.restart()
	if n.containerd == nil {
		var err error
		if n.containerd, err = n.env.StartContainerd("lacuna", ""); err != nil {
			n.t.Fatal(err)
		}
	}
}

func (n *node) restart() {
	n.t.Helper()
	var err error
	if n.daemon, err = n.env.StartDaemon("fetch.timeout = \"20s\"\n" + n.config); err != nil {
		n.t.Fatal(err)
	}
}

func (n *node) ctr(args ...string) string {
	n.t.Helper()
	out, err := n.tryCtr(args...)
	if err != nil {
		n.t.Fatal(err)
	}
	return out
}

func (n *node) tryCtr(args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute) // a hang guard
	defer cancel()
	return n.containerd.Ctr(ctx, args...)
}

// out is ctr for run and tasks exec, with what the container prints.
func (n *node) out(args ...string) string {
	n.t.Helper()
	out, err := n.tryOut(args...)
	if err != nil {
		n.t.Fatal(err)
	}
	return out
}

func (n *node) tryOut(args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute) // a hang guard
	defer cancel()
	return n.containerd.Output(ctx, args...)
}

func (n *node) pull(ref string, flags ...string) {
	n.t.Helper()
	n.ctr(append(append([]string{"images", "pull", "--hosts-dir", n.env.HostsDir(), "--snapshotter", "lacuna"}, flags...), ref)...)
}

// lacunactl runs it with a hang guard.
func (n *node) lacunactl(args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	return n.env.Lacunactl(ctx, args...)
}

// layers asks the daemon.
func (n *node) layers() (l statusapi.Layers) {
	n.t.Helper()
	out, err := n.lacunactl("layers", "--json")
	if err == nil {
		err = json.Unmarshal([]byte(out), &l)
	}
	if err != nil {
		n.t.Fatal(err)
	}
	return l
}

// until waits for what happens by itself.
func (n *node) until(what string, f func() bool) {
	n.t.Helper()
	for range 1200 {
		if f() {
			return
		}
		select {
		case <-n.daemon.Done():
			n.t.Fatalf("the daemon has ended; never: %s", what)
		default:
		}
		time.Sleep(100 * time.Millisecond)
	}
	n.t.Fatalf("never: %s", what)
}

var readerProgram = sync.OnceValues(func() ([]byte, error) {
	dir, err := os.MkdirTemp("", "reader-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	cmd := exec.Command("go", "build", "-ldflags=-s -w", "-o", dir+"/reader", "./images/reader")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("build reader: %w\n%s", err, out)
	}
	return os.ReadFile(dir + "/reader")
})

// program is the layer with /reader.
func (n *node) program() string {
	n.t.Helper()
	content, err := readerProgram()
	if err != nil {
		n.t.Fatal(err)
	}
	return packLayer(n.t, n.env.Path("program.tar.gz"), []entry{
		{tar.Header{Typeflag: tar.TypeReg, Name: "reader", Mode: 0o755, Size: int64(len(content))}, string(content)},
	})
}

// data is a layer with so many files of so many bytes in /data, which do not
// compress. The same name and numbers give the same layer.
func (n *node) data(name string, files, size int) string {
	n.t.Helper()
	seed := [32]byte{}
	copy(seed[:], name)
	random := rand.NewChaCha8(seed)
	entries := []entry{{Header: tar.Header{Typeflag: tar.TypeDir, Name: "data/", Mode: 0o755}}}
	for i := range files {
		b := make([]byte, size)
		_, _ = random.Read(b)
		entries = append(entries, entry{tar.Header{Typeflag: tar.TypeReg, Name: fmt.Sprintf("data/%s-%d", name, i), Mode: 0o644, Size: int64(size)}, string(b)})
	}
	path := packLayer(n.t, n.env.Path(name+".tar.gz"), entries)
	n.content[path] = entries[1:]
	return path
}

// want is what a pass of the reader prints for an image of such layers.
func (n *node) want(layers ...string) string {
	var all []entry
	for _, path := range layers {
		all = append(all, n.content[path]...)
	}
	slices.SortFunc(all, func(a, b entry) int { return strings.Compare(a.Name, b.Name) })
	h := sha256.New()
	for _, e := range all {
		fmt.Fprintf(h, "/%s\n%s", e.Name, e.content)
	}
	return fmt.Sprintf("%x\n", h.Sum(nil))
}

// push pushes an image, with indexes if they are wanted, and returns its reference
// for pulling.
func (n *node) push(repo string, indexed bool, layers ...string) string {
	n.t.Helper()
	ctx := context.Background()
	image := &harness.Image{Layers: layers, Cmd: []string{"/reader"}}
	if _, err := image.Push(ctx, n.registry+repo); err != nil {
		n.t.Fatal(err)
	}
	if indexed {
		if _, err := n.env.Run(ctx, "lacunactl", "index", "create", "--push", "--plain-http", "--store", n.env.Path("index"), n.registry+repo); err != nil {
			n.t.Fatal(err)
		}
	}
	return n.addr + repo
}
