package integration

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/lacuna-snapshotter/lacuna/integration/harness"
	"github.com/lacuna-snapshotter/lacuna/internal/hostcheck"
	"github.com/lacuna-snapshotter/lacuna/internal/kernel"
	"github.com/lacuna-snapshotter/lacuna/internal/statusapi"
	"github.com/lacuna-snapshotter/lacuna/ondemand/fanotify"
)

// node is what a test has for itself: containerd, a daemon, a registry that misbehaves on
// request, and small images of package images/reader.
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
	content    map[string][]harness.Entry // of the layers that data made, by path
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
	env, err := harness.FromSource()
	if err != nil {
		t.Fatal(err)
	}
	n := &node{t: t, env: env, content: map[string][]harness.Entry{}}
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

// pass is no fault: the registry answers.
func (n *node) pass(w http.ResponseWriter, r *http.Request) {
	httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: n.registry}).ServeHTTP(w, r)
}

// fails has the registry answer with f; nil ends the fault.
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

// lacunactl runs lacunactl with a hang guard.
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

// until waits until f is true.
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

// pack makes a layer.
func pack(t *testing.T, path string, entries ...harness.Entry) string {
	t.Helper()
	if err := harness.PackLayer(path, entries...); err != nil {
		t.Fatal(err)
	}
	return path
}

// program is the layer with /reader.
func (n *node) program() string {
	n.t.Helper()
	content, err := n.env.Compile(context.Background(), "reader")
	if err != nil {
		n.t.Fatal(err)
	}
	return pack(n.t, n.env.Path("program.tar.gz"), harness.File("reader", 0o755, 0, 0, string(content)))
}

// data is a layer with so many files of so many bytes in /data, which do not
// compress. The same name and numbers give the same layer.
func (n *node) data(name string, files, size int) string {
	n.t.Helper()
	seed := [32]byte{}
	copy(seed[:], name)
	random := rand.NewChaCha8(seed)
	var entries []harness.Entry
	for i := range files {
		b := make([]byte, size)
		_, _ = random.Read(b)
		entries = append(entries, harness.File(fmt.Sprintf("data/%s-%d", name, i), 0o644, 0, 0, string(b)))
	}
	path := pack(n.t, n.env.Path(name+".tar.gz"), append([]harness.Entry{harness.Folder("data", 0o755, 0, 0)}, entries...)...)
	n.content[path] = entries
	return path
}

// want is what a pass of the reader prints for an image of such layers.
func (n *node) want(layers ...string) string {
	var all []harness.Entry
	for _, path := range layers {
		all = append(all, n.content[path]...)
	}
	slices.SortFunc(all, func(a, b harness.Entry) int { return strings.Compare(a.Name, b.Name) })
	h := sha256.New()
	for _, e := range all {
		fmt.Fprintf(h, "/%s\n%s", e.Name, e.Content)
	}
	return fmt.Sprintf("%x\n", h.Sum(nil))
}

// push pushes an image, with its index where that is wanted, and returns its reference
// for pulling.
func (n *node) push(repo string, indexed bool, layers ...string) string {
	n.t.Helper()
	push(n.t, n.env, n.registry+repo, "/reader", indexed, layers...)
	return n.addr + repo
}

// push pushes an image that runs a program.
func push(t *testing.T, e *harness.Env, ref, program string, indexed bool, layers ...string) {
	t.Helper()
	image := &harness.Image{Layers: layers, Cmd: []string{program}}
	var err error
	if indexed {
		_, err = e.PushIndexed(context.Background(), image, ref)
	} else {
		_, err = image.Push(context.Background(), ref)
	}
	if err != nil {
		t.Fatal(err)
	}
}
