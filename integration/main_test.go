package integration

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lacuna-snapshotter/lacuna/integration/harness"
	"github.com/lacuna-snapshotter/lacuna/internal/hostcheck"
	"github.com/lacuna-snapshotter/lacuna/internal/kernel"
	"github.com/lacuna-snapshotter/lacuna/ondemand/fanotify"
)

// shared is the set of real parts that the tests of this package use together:
// starting it takes longer than most of them.
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

// real returns the parts, started.
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
	top, err := filepath.Abs("..")
	if err != nil {
		return err
	}
	if p.env, err = harness.New(filepath.Join(top, ".cache", "bin")); err != nil {
		return err
	}
	p.env.Capabilities = []string{"remap-ids"} // as README says
	images := filepath.Join(top, "integration", "images")
	p.image, err = harness.BuildImage(ctx, p.env, filepath.Join(images, "build.sh"), filepath.Join(top, ".cache", "images"),
		"numpy", filepath.Join(images, "numpy"), "python3", "python3-numpy")
	if err != nil {
		return err
	}
	p.image.Cmd = []string{"python3", "/app/main.py"}
	if p.registry, err = p.env.StartRegistry(); err != nil {
		return err
	}
	if p.link, err = p.env.StartLink(p.registry, 1e9, 2*time.Millisecond); err != nil {
		return err
	}
	if err := p.env.AllowHTTP(p.link.Addr); err != nil {
		return err
	}
	for _, repo := range []string{"/test/numpy:latest", "/test/plain:latest"} {
		if _, err := p.image.Push(ctx, p.registry+repo); err != nil {
			return err
		}
	}
	_, err = p.env.Run(ctx, "lacunactl", "index", "create", "--push", "--plain-http", "--store", p.env.Path("index"), p.registry+"/test/numpy:latest")
	if err != nil {
		return err
	}
	p.ref, p.plain = p.link.Addr+"/test/numpy:latest", p.link.Addr+"/test/plain:latest"
	pause, err := p.pushPause(ctx, images)
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
	p.daemon, err = p.env.StartDaemon("fetch.timeout = \"20s\"\nsettle.enabled = false")
	return err
}

// pushPause builds the sandbox image from source and pushes it with an index.
func (p *parts) pushPause(ctx context.Context, images string) (string, error) {
	program := p.env.Path("pause")
	cmd := exec.CommandContext(ctx, "go", "build", "-o", program, filepath.Join(images, "pause"))
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build pause: %w\n%s", err, out)
	}
	content, err := os.ReadFile(program)
	if err != nil {
		return "", err
	}
	image, err := harness.PackImage(p.env.Path("pause.tar.gz"), "pause", content)
	if err != nil {
		return "", err
	}
	ref := p.registry + "/test/pause:latest"
	if _, err := image.Push(ctx, ref); err != nil {
		return "", err
	}
	_, err = p.env.Run(ctx, "lacunactl", "index", "create", "--push", "--plain-http", "--store", p.env.Path("index"), ref)
	return p.link.Addr + "/test/pause:latest", err
}

// forget removes images and their snapshots, all but the sandboxes', so that the
// next pull is a first one.
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
