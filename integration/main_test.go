package integration

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/lacuna-snapshotter/lacuna/integration/harness"
	"github.com/lacuna-snapshotter/lacuna/internal/hostcheck"
	"github.com/lacuna-snapshotter/lacuna/internal/kernel"
	"github.com/lacuna-snapshotter/lacuna/ondemand/fanotify"
)

// shared is the set of programs that the tests of this package share: starting it takes
// longer than most of them.
var shared struct {
	once sync.Once
	*parts
	err error
}

type parts struct {
	env        *harness.Env
	registry   string
	link       *harness.Link
	daemon     *harness.Daemon
	containerd *harness.Containerd
	image      *harness.Image
	ref        string // of the indexed image, over the link
	plain      string // of the same image in another repository, without an index
}

func TestMain(m *testing.M) {
	// An interrupted run leaves nothing behind either.
	interrupt := make(chan os.Signal, 1)
	signal.Notify(interrupt, unix.SIGINT, unix.SIGTERM)
	go func() {
		<-interrupt
		closeShared()
		os.Exit(130)
	}()
	code := m.Run()
	if err := closeShared(); err != nil {
		fmt.Fprintln(os.Stderr, "cleaning up:", err)
		code = 1
	}
	os.Exit(code)
}

func closeShared() error {
	if shared.parts == nil || shared.env == nil {
		return nil
	}
	return shared.env.Close()
}

// real returns the shared programs, running.
func real(t *testing.T) *parts {
	t.Helper()
	hostcheck.Root(t)
	hostcheck.Feature(t, kernel.PreContent)
	if err := fanotify.Probe("/var/tmp"); err != nil {
		hostcheck.Missing(t, "a file system with pre-content events: "+err.Error())
	}
	for _, tool := range []string{"runc", "mmdebstrap", "getfattr"} {
		hostcheck.Tool(t, tool)
	}
	shared.once.Do(func() {
		shared.parts = &parts{}
		shared.err = shared.start(context.Background())
	})
	if shared.err != nil {
		t.Fatal(shared.err)
	}
	return shared.parts
}

func (p *parts) start(ctx context.Context) (err error) {
	if p.env, err = harness.FromSource(); err != nil {
		return err
	}
	p.env.Capabilities = []string{"remap-ids"} // as docs/install.md says
	if p.image, err = p.env.Numpy(ctx); err != nil {
		return err
	}
	published, err := p.env.Publish(ctx, p.image, "/test/numpy:latest", harness.Fast)
	if err != nil {
		return err
	}
	p.registry, p.link, p.ref = published.Registry, published.Link, published.Ref
	if _, err := p.image.Push(ctx, p.registry+"/test/plain:latest"); err != nil {
		return err
	}
	p.plain = p.link.Addr + "/test/plain:latest"
	pause, err := p.pushPause(ctx)
	if err != nil {
		return err
	}
	if err := p.startDaemon(); err != nil {
		return err
	}
	p.containerd, err = p.env.StartContainerd("lacuna", pause)
	return err
}

func (p *parts) startDaemon() (err error) {
	// Short waits, so that a dead registry is noticed within a test.
	p.daemon, err = p.env.StartDaemon("fetch.timeout = \"20s\"\nbackfill.enabled = false")
	return err
}

// pushPause builds the sandbox image from source and pushes it with its index.
func (p *parts) pushPause(ctx context.Context) (string, error) {
	content, err := p.env.Compile(ctx, "pause")
	if err != nil {
		return "", err
	}
	image := &harness.Image{Layers: []string{p.env.Path("pause.tar.gz")}, Cmd: []string{"/pause"}}
	if err := harness.PackLayer(image.Layers[0], harness.File("pause", 0o755, 0, 0, string(content))); err != nil {
		return "", err
	}
	_, err = p.env.PushIndexed(ctx, image, p.registry+"/test/pause:latest")
	return p.link.Addr + "/test/pause:latest", err
}

// forget removes all images and snapshots but the sandbox's, so that the next pull is
// like a first one.
func (p *parts) forget(t *testing.T) {
	t.Helper()
	ctx := context.Background()
	for _, ns := range []string{p.env.Namespace(), "k8s.io"} {
		out, err := p.containerd.Ctr(ctx, "-n", ns, "images", "list", "-q")
		if err != nil {
			t.Fatal(err)
		}
		for ref := range strings.FieldsSeq(out) {
			if strings.Contains(ref, "/test/numpy") || strings.Contains(ref, "/test/plain") || strings.HasPrefix(ref, "sha256:") {
				if _, err := p.containerd.Ctr(ctx, "-n", ns, "images", "rm", "--sync", ref); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	if err := harness.WaitUnmounted(p.daemon.Root+"/snapshots/m", 1); err != nil { // pause's may stay
		t.Fatal(err)
	}
}
