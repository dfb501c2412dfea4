package integration

import (
	"archive/tar"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/lacuna-snapshotter/lacuna/integration/harness"
)

// mappings of user namespaces, as ctr run takes them for user and group IDs.
var mappings = []struct {
	name   string
	ranges []string
}{
	{"100000", []string{"0:100000:65536"}},
	{"200000", []string{"0:200000:65536"}},
	// Root stays root: the owner of a root directory does not tell whether its IDs
	// are mapped.
	{"root", []string{"0:0:1", "1:300001:65535"}},
}

// usernsRefs are images of package images/probe.
type usernsRefs struct {
	one   string // one lazy layer
	many  string // three
	mixed string // two of these, and one that containerd unpacks
}

func (r usernsRefs) all() []string { return []string{r.one, r.many, r.mixed} }

// pushProbe pushes the images and makes the first two's indexes.
func (p *parts) pushProbe(t *testing.T) usernsRefs {
	t.Helper()
	ctx, dir := t.Context(), t.TempDir()
	program := filepath.Join(dir, "probe")
	cmd := exec.CommandContext(ctx, "go", "build", "-ldflags=-s -w", "-o", program, "./images/probe")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build probe: %v\n%s", err, out)
	}
	content, err := os.ReadFile(program)
	if err != nil {
		t.Fatal(err)
	}
	file := func(name string, mode int64, uid, gid int, content string) entry {
		return entry{tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: mode, Uid: uid, Gid: gid, Size: int64(len(content))}, content}
	}
	folder := func(name string, mode int64, uid, gid int) entry {
		return entry{Header: tar.Header{Typeflag: tar.TypeDir, Name: name + "/", Mode: mode, Uid: uid, Gid: gid}}
	}
	base := packLayer(t, filepath.Join(dir, "base"), []entry{
		folder("dir", 0o2775, 1000, 2000),
		file("dir/file", 0o644, 1000, 2000, "file"),
		file("dir/gone", 0o644, 33, 33, "gone"),
		file("dir/under", 0o644, 33, 33, "under"),
		file("owned", 0o644, 1000, 65534, "owned"),
		file("secret", 0o600, 0, 0, "secret"),
		file("plain", 0o755, 0, 0, string(content)),
		{Header: tar.Header{Typeflag: tar.TypeLink, Name: "probe", Linkname: "plain", Mode: 0o755}},
		file("suid-root", 0o4755, 0, 0, string(content)),
		file("suid-user", 0o6755, 1000, 2000, string(content)),
		{Header: tar.Header{Typeflag: tar.TypeSymlink, Name: "link", Linkname: "owned", Mode: 0o777, Uid: 5, Gid: 6}},
		{Header: tar.Header{Typeflag: tar.TypeChar, Name: "null", Mode: 0o666, Devmajor: 1, Devminor: 3}},
	})
	second := packLayer(t, filepath.Join(dir, "second"), []entry{
		folder("dir", 0o2775, 1000, 2000),
		file("dir/.wh.under", 0o644, 0, 0, ""),
		file("dir/second", 0o640, 1001, 1001, "second"),
	})
	third := packLayer(t, filepath.Join(dir, "third"), []entry{file("third", 0o640, 1002, 1002, "third")})
	unpacked := packLayer(t, filepath.Join(dir, "unpacked"), []entry{
		folder("dir", 0o2775, 1000, 2000),
		file("dir/unpacked", 0o640, 1003, 1003, "unpacked"),
	})
	push := func(repo string, indexed bool, layers ...string) string {
		image := &harness.Image{Layers: layers, Cmd: []string{"/probe"}}
		if _, err := image.Push(ctx, p.registry+repo); err != nil {
			t.Fatal(err)
		}
		if indexed {
			_, err := p.env.Run(ctx, "lacunactl", "index", "create", "--push", "--plain-http", "--store", p.env.Path("index"), p.registry+repo)
			if err != nil {
				t.Fatal(err)
			}
		}
		return p.link.Addr + repo
	}
	return usernsRefs{
		one:   push("/test/probe-one:latest", true, base),
		many:  push("/test/probe-many:latest", true, base, second, third),
		mixed: push("/test/probe-mixed:latest", false, base, second, unpacked),
	}
}

type entry struct {
	tar.Header
	content string
}

func packLayer(t *testing.T, path string, entries []entry) string {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	z := gzip.NewWriter(f)
	w := tar.NewWriter(z)
	for _, e := range entries {
		e.ModTime = time.Unix(0, 0)
		err = errors.Join(err, w.WriteHeader(&e.Header))
		_, werr := w.Write([]byte(e.content))
		err = errors.Join(err, werr)
	}
	if err := errors.Join(err, w.Close(), z.Close(), f.Close()); err != nil {
		t.Fatal(err)
	}
	return path
}

// probe runs an image in a user namespace, or with no ranges in none, and returns
// what the program says.
func probe(ctx context.Context, c *harness.Containerd, snapshotter, ref string, ranges []string, flags ...string) (string, error) {
	args := append([]string{"run", "--rm", "--allow-new-privs", "--snapshotter", snapshotter}, flags...)
	for _, r := range ranges {
		args = append(args, "--uidmap", r, "--gidmap", r)
	}
	return c.Output(ctx, append(args, ref, "probe-"+snapshotter)...)
}

// usernsCase is one way to run an image.
type usernsCase struct {
	name, ref string
	ranges    []string
	flags     []string
}

// mapped are images in user namespaces.
func (r usernsRefs) mapped() (list []usernsCase) {
	add := func(ref string, m int) {
		list = append(list, usernsCase{path.Base(ref) + " " + mappings[m].name, ref, mappings[m].ranges, []string{"--remap-labels"}})
	}
	for m := range mappings {
		add(r.many, m)
	}
	add(r.one, 0)
	add(r.mixed, 0)
	return list
}

// others do without owners that are mapped, or without writing.
func (r usernsRefs) others() []usernsCase {
	return []usernsCase{
		{"no user namespace", r.one, nil, nil},
		{"read-only", r.one, nil, []string{"--read-only"}},
		{"read-only and mapped", r.many, mappings[0].ranges, []string{"--remap-labels", "--read-only"}},
		{"no labels", r.many, mappings[0].ranges, nil},
	}
}

// facts are in the output of every run that may write.
var facts = []string{
	"in the image / 0:0 40755",
	"in the image /owned 1000:65534 100644",
	"in the image /suid-user 1000:2000 106755",
	"new /new 0:0 100644",
	"changed /dir/file 7:8 100644",
	`content "ownedmore": done`,
	"device: done",
	"/suid-root: uid 33 effective 0 reads the secret: true",
	"/suid-user: uid 33 effective 1000 reads the secret: false",
	"/plain: uid 33 effective 33 reads the secret: false",
}

// TestUserNamespaces compares what a container in a user namespace sees and may do
// with the same over overlayfs: where containerd's snapshotter maps owners, and
// where its client changes them, because the proxy plugin lacks remap-ids.
func TestUserNamespaces(t *testing.T) {
	p := real(t)
	ctx := t.Context()
	refs := p.pushProbe(t)
	t.Cleanup(func() {
		args := append([]string{"images", "rm", "--sync"}, refs.all()...)
		if _, err := p.containerd.Ctr(context.Background(), args...); err != nil {
			t.Error(err)
		}
	})
	want := map[string]string{}
	for _, ref := range refs.all() {
		for _, sn := range []string{"overlayfs", "lacuna"} {
			if err := p.containerd.Pull(ctx, sn, ref); err != nil {
				t.Fatal(err)
			}
		}
	}
	all := append(refs.mapped(), refs.others()...)
	for _, c := range all {
		var err error
		if want[c.name], err = probe(ctx, p.containerd, "overlayfs", c.ref, c.ranges, c.flags...); err != nil {
			t.Fatal(err)
		}
		if slices.Contains(c.flags, "--read-only") {
			continue
		}
		for _, f := range facts {
			if !strings.Contains(want[c.name], f+"\n") {
				t.Errorf("overlayfs, %s: no %q in\n%s", c.name, f, want[c.name])
			}
		}
	}
	same := func(t *testing.T, containerd *harness.Containerd, cases []usernsCase) {
		for _, c := range cases {
			t.Run(c.name, func(t *testing.T) {
				got, err := probe(t.Context(), containerd, "lacuna", c.ref, c.ranges, c.flags...)
				if err != nil {
					t.Fatal(err)
				}
				if got != want[c.name] {
					t.Errorf("got\n%s\noverlayfs has\n%s", got, want[c.name])
				}
			})
		}
	}
	t.Run("remap-ids", func(t *testing.T) { same(t, p.containerd, all) })

	// FUSE's mount is below the root and cannot be mapped.
	env, err := harness.New(p.env.Bin)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := env.Close(); err != nil {
			t.Error(err)
		}
	})
	if err := env.AllowHTTP(p.link.Addr); err != nil {
		t.Fatal(err)
	}
	daemon, err := env.StartDaemon("transport = \"fuse\"\nbackfill.enabled = false")
	if err != nil {
		t.Fatal(err)
	}
	for _, capabilities := range [][]string{nil, {"remap-ids"}} {
		env.Capabilities = capabilities
		containerd, err := env.StartContainerd("lacuna", "")
		if err != nil {
			t.Fatal(err)
		}
		if capabilities == nil {
			for _, ref := range refs.all() {
				if err := containerd.Pull(ctx, "lacuna", ref); err != nil {
					t.Fatal(err)
				}
			}
			lazy, err := harness.Mounts(daemon.Root + "/snapshots/m")
			if err != nil || len(lazy) != 3 {
				t.Errorf("layers mounted: %q, %v", lazy, err)
			}
		}
		t.Run(fmt.Sprintf("FUSE %q", capabilities), func(t *testing.T) { same(t, containerd, refs.mapped()) })
		if err := containerd.Stop(); err != nil {
			t.Fatal(err)
		}
	}
}

// TestCRIUserNamespace does what a kubelet does for hostUsers: false, on the host's
// network since there are no CNI plugins here.
func TestCRIUserNamespace(t *testing.T) {
	p := real(t)
	p.forget(t)
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	conn, err := grpc.NewClient("unix://"+p.containerd.Address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	images, runtime := cri.NewImageServiceClient(conn), cri.NewRuntimeServiceClient(conn)

	ids := []*cri.IDMapping{{ContainerId: 0, HostId: 100000, Length: 65536}}
	namespaces := &cri.NamespaceOption{
		Network:       cri.NamespaceMode_NODE,
		UsernsOptions: &cri.UserNamespace{Mode: cri.NamespaceMode_POD, Uids: ids, Gids: ids},
	}
	sandbox := &cri.PodSandboxConfig{
		Metadata:     &cri.PodSandboxMetadata{Name: "userns", Namespace: "default", Uid: "userns"},
		LogDirectory: t.TempDir(),
		Linux:        &cri.LinuxPodSandboxConfig{SecurityContext: &cri.LinuxSandboxSecurityContext{NamespaceOptions: namespaces}},
	}
	pod, err := runtime.RunPodSandbox(ctx, &cri.RunPodSandboxRequest{Config: sandbox})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		ctx := context.WithoutCancel(ctx)
		_, _ = runtime.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: pod.PodSandboxId})
		if _, err := runtime.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: pod.PodSandboxId}); err != nil {
			t.Error(err)
		}
	}()
	status, err := runtime.PodSandboxStatus(ctx, &cri.PodSandboxStatusRequest{PodSandboxId: pod.PodSandboxId, Verbose: true})
	if err != nil {
		t.Fatal(err)
	}
	var info struct{ Pid int }
	if err := json.Unmarshal([]byte(status.Info["info"]), &info); err != nil || info.Pid == 0 {
		t.Fatalf("%v: %s", err, status.Info["info"])
	}
	for _, path := range []string{"/", "/pause"} {
		var st unix.Stat_t
		if err := unix.Stat(fmt.Sprintf("/proc/%d/root%s", info.Pid, path), &st); err != nil || st.Uid != 100000 || st.Gid != 100000 {
			t.Errorf("%s of the sandbox belongs to %d:%d, %v", path, st.Uid, st.Gid, err)
		}
	}

	runtimes, err := runtime.Status(ctx, &cri.StatusRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if !slices.ContainsFunc(runtimes.RuntimeHandlers, func(h *cri.RuntimeHandler) bool { return h.GetFeatures().GetUserNamespaces() }) {
		t.Log("no container in the sandbox: that needs runc 1.2, which maps the owners of bind mounts")
		return
	}
	pulled, err := images.PullImage(ctx, &cri.PullImageRequest{Image: &cri.ImageSpec{Image: p.ref}})
	if err != nil {
		t.Fatal(err)
	}
	created, err := runtime.CreateContainer(ctx, &cri.CreateContainerRequest{
		PodSandboxId:  pod.PodSandboxId,
		SandboxConfig: sandbox,
		Config: &cri.ContainerConfig{
			Metadata: &cri.ContainerMetadata{Name: "c"},
			Image:    &cri.ImageSpec{Image: pulled.ImageRef},
			Command:  []string{"sleep", "1000"},
			Linux:    &cri.LinuxContainerConfig{SecurityContext: &cri.LinuxContainerSecurityContext{NamespaceOptions: namespaces}},
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := runtime.StartContainer(ctx, &cri.StartContainerRequest{ContainerId: created.ContainerId}); err != nil {
		t.Fatal(err)
	}
	out, err := runtime.ExecSync(ctx, &cri.ExecSyncRequest{
		ContainerId: created.ContainerId, Timeout: 60,
		Cmd: []string{"sh", "-c", "touch /new && stat -c %u:%g / /new /usr/bin/env && cat /proc/self/uid_map"},
	})
	if err != nil || strings.Join(strings.Fields(string(out.GetStdout())), " ") != "0:0 0:0 0:0 0 100000 65536" {
		t.Errorf("%v %v", out, err)
	}
}
