package integration

import (
	"context"
	"strings"
	"testing"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	dockerconfig "github.com/containerd/containerd/v2/core/remotes/docker/config"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/pkg/snapshotters"
)

// lazy fails if more than half of the image went over the link since before.
func (p *parts) lazy(t *testing.T, before int64) {
	t.Helper()
	size, err := p.image.Size()
	if err != nil {
		t.Fatal(err)
	}
	got := p.link.Received() - before
	t.Logf("%.1f MB of %.1f MB fetched", float64(got)/1e6, float64(size)/1e6)
	if got > size/2 {
		t.Errorf("%d bytes fetched of an image of %d: this was no lazy start", got, size)
	}
}

const hashFiles = `cd / && find bin sbin lib lib64 etc usr var app -xdev -type f ! -path etc/hosts ! -path etc/hostname ! -path etc/resolv.conf -print0 | sort -z | xargs -0 sha256sum`

// sameTree compares every file in the container with the same over overlayfs.
func (p *parts) sameTree(t *testing.T) {
	t.Helper()
	ctx := t.Context()
	got, err := p.containerd.RunIn(ctx, "lacuna", p.ref, "tree-lacuna", "sh", "-c", hashFiles)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.containerd.Pull(ctx, "overlayfs", p.ref); err != nil {
		t.Fatal(err)
	}
	want, err := p.containerd.RunIn(ctx, "overlayfs", p.ref, "tree-overlayfs", "sh", "-c", hashFiles)
	if err != nil {
		t.Fatal(err)
	}
	if got != want || strings.Count(got, "\n") < 5000 {
		t.Errorf("the trees differ: %d and %d files", strings.Count(got, "\n"), strings.Count(want, "\n"))
	}
}

// TestTransferService pulls as ctr images pull and nerdctl on containerd 2.x do.
func TestTransferService(t *testing.T) {
	p := real(t)
	p.forget(t)
	before := p.link.Received()
	s, err := p.containerd.PullAndRun(t.Context(), p.link, "lacuna", p.ref, "transfer")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(s.Out, "numpy 1.") {
		t.Errorf("output %q", s.Out)
	}
	p.lazy(t, before)
	p.sameTree(t)
}

// TestClientPull pulls with containerd's client library, as nerdctl on 1.7 and
// others do.
func TestClientPull(t *testing.T) {
	p := real(t)
	p.forget(t)
	before := p.link.Received()
	ctx := namespaces.WithNamespace(t.Context(), p.env.Namespace())
	client, err := containerd.New(p.containerd.Address)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	resolver := docker.NewResolver(docker.ResolverOptions{
		Hosts: dockerconfig.ConfigureHosts(ctx, dockerconfig.HostOptions{HostDir: dockerconfig.HostDirFromRoot(p.env.HostsDir())}),
	})
	_, err = client.Pull(ctx, p.ref,
		containerd.WithResolver(resolver), containerd.WithPullUnpack, containerd.WithPullSnapshotter("lacuna"),
		containerd.WithImageHandlerWrapper(snapshotters.AppendInfoHandlerWrapper(p.ref)))
	if err != nil {
		t.Fatal(err)
	}
	out, err := p.containerd.RunIn(ctx, "lacuna", p.ref, "client")
	if err != nil || !strings.Contains(out, "ready") {
		t.Fatalf("%q %v", out, err)
	}
	p.lazy(t, before)
}

// TestCtrLocal pulls with ctr images pull --local. ctr itself downloads the whole
// image before it unpacks (cmd/ctr/commands/images/pull.go, containerd 2.4.2) and
// passes no labels, so no snapshotter can be lazy here; it must still work.
func TestCtrLocal(t *testing.T) {
	p := real(t)
	p.forget(t)
	ctx := t.Context()
	if _, err := p.containerd.Ctr(ctx, "images", "pull", "--local", "--hosts-dir", p.env.HostsDir(), "--snapshotter", "lacuna", p.ref); err != nil {
		t.Fatal(err)
	}
	out, err := p.containerd.RunIn(ctx, "lacuna", p.ref, "local")
	if err != nil || !strings.Contains(out, "ready") {
		t.Fatalf("%q %v", out, err)
	}
}

// TestNoIndex leaves an image without an index to containerd, and says so.
func TestNoIndex(t *testing.T) {
	p := real(t)
	p.forget(t)
	ctx := t.Context()
	s, err := p.containerd.PullAndRun(ctx, p.link, "lacuna", p.plain, "plain")
	if err != nil || !strings.Contains(s.Out, "ready") {
		t.Fatalf("%q %v", s.Out, err)
	}
	if !strings.Contains(p.daemon.Log(), "layer left to containerd's unpack") {
		t.Error("the log does not say that layers were left to containerd")
	}
	out, err := p.env.Lacunactl(ctx, "layers")
	if err != nil || !strings.Contains(out, "was left to containerd: no index") {
		t.Errorf("lacunactl layers: %v\n%s", err, out)
	}
}

// TestLacunactl looks at each listing, as people and as scripts see it.
func TestLacunactl(t *testing.T) {
	p := real(t)
	ctx := context.Background()
	for _, tc := range []struct {
		args []string
		want string
	}{
		{[]string{"status"}, "transport    fanotify"},
		{[]string{"status", "--json"}, `"transport": "fanotify"`},
		{[]string{"layers"}, "LAYER"},
		{[]string{"layers", "--json"}, `"layers": [`},
		{[]string{"index", "inspect", p.ref}, " %; in "},
		{[]string{"index", "inspect", p.ref, "--json"}, `"checkpoints"`},
		{[]string{"check-config"}, "good"},
	} {
		out, err := p.env.Lacunactl(ctx, tc.args...)
		if err != nil || !strings.Contains(out, tc.want) {
			t.Errorf("lacunactl %v: %v\n%s", tc.args, err, out)
		}
	}
}
