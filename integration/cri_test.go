package integration

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// kubelet does what a kubelet does with one pod, on the host's network since there are
// no CNI plugins here.
type kubelet struct {
	t       *testing.T
	ctx     context.Context
	images  cri.ImageServiceClient
	runtime cri.RuntimeServiceClient
	sandbox *cri.PodSandboxConfig
	pod     string
}

// newKubelet connects to containerd and starts a pod's sandbox, which ends with the
// test. User namespaces are those of the pod, nil for none.
func newKubelet(t *testing.T, p *parts, name string, users *cri.UserNamespace) *kubelet {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute) // a hang guard
	t.Cleanup(cancel)
	conn, err := grpc.NewClient("unix://"+p.containerd.Address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	k := &kubelet{t: t, ctx: ctx, images: cri.NewImageServiceClient(conn), runtime: cri.NewRuntimeServiceClient(conn)}
	k.sandbox = &cri.PodSandboxConfig{
		Metadata:     &cri.PodSandboxMetadata{Name: name, Namespace: "default", Uid: name},
		LogDirectory: t.TempDir(),
		Linux: &cri.LinuxPodSandboxConfig{SecurityContext: &cri.LinuxSandboxSecurityContext{
			NamespaceOptions: &cri.NamespaceOption{Network: cri.NamespaceMode_NODE, UsernsOptions: users},
		}},
	}
	pod, err := k.runtime.RunPodSandbox(ctx, &cri.RunPodSandboxRequest{Config: k.sandbox})
	if err != nil {
		t.Fatalf("%v\n%s", err, p.containerd.Tail())
	}
	k.pod = pod.PodSandboxId
	t.Cleanup(func() {
		ctx := context.Background()
		_, _ = k.runtime.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: k.pod})
		if _, err := k.runtime.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: k.pod}); err != nil {
			t.Error(err)
		}
		if _, err := k.images.RemoveImage(ctx, &cri.RemoveImageRequest{Image: &cri.ImageSpec{Image: p.ref}}); err != nil {
			t.Error(err)
		}
	})
	return k
}

// run pulls an image and starts a container of it in the pod, and returns the
// container's ID.
func (k *kubelet) run(ref string) string {
	k.t.Helper()
	pulled, err := k.images.PullImage(k.ctx, &cri.PullImageRequest{Image: &cri.ImageSpec{Image: ref}})
	if err != nil {
		k.t.Fatal(err)
	}
	options := k.sandbox.Linux.SecurityContext.NamespaceOptions
	created, err := k.runtime.CreateContainer(k.ctx, &cri.CreateContainerRequest{
		PodSandboxId:  k.pod,
		SandboxConfig: k.sandbox,
		Config: &cri.ContainerConfig{
			Metadata: &cri.ContainerMetadata{Name: "c"},
			Image:    &cri.ImageSpec{Image: pulled.ImageRef},
			Command:  []string{"sleep", "1000"},
			Linux:    &cri.LinuxContainerConfig{SecurityContext: &cri.LinuxContainerSecurityContext{NamespaceOptions: options}},
		},
	})
	if err != nil {
		k.t.Fatal(err)
	}
	if _, err := k.runtime.StartContainer(k.ctx, &cri.StartContainerRequest{ContainerId: created.ContainerId}); err != nil {
		k.t.Fatal(err)
	}
	return created.ContainerId
}

// exec runs a command in a container and returns what it prints.
func (k *kubelet) exec(id string, command ...string) string {
	k.t.Helper()
	out, err := k.runtime.ExecSync(k.ctx, &cri.ExecSyncRequest{ContainerId: id, Cmd: command, Timeout: 60})
	if err != nil || out.ExitCode != 0 {
		k.t.Fatalf("%q: %v %v", command, out, err)
	}
	return string(out.Stdout)
}

// TestCRI pulls an image lazily through CRI and runs it in a pod.
func TestCRI(t *testing.T) {
	p := real(t)
	p.forget(t)
	before := p.link.Received()
	k := newKubelet(t, p, "pod", nil)
	id := k.run(p.ref)
	if out := k.exec(id, "python3", "/app/main.py"); !strings.Contains(out, "ready") {
		t.Fatalf("%q", out)
	}
	p.lazy(t, before)
	usage, err := k.images.ImageFsInfo(k.ctx, &cri.ImageFsInfoRequest{})
	if err != nil || len(usage.ImageFilesystems) == 0 {
		t.Errorf("%v %v", usage, err)
	}
}

// TestCRIUserNamespace runs a pod with hostUsers: false.
func TestCRIUserNamespace(t *testing.T) {
	p := real(t)
	p.forget(t)
	ids := []*cri.IDMapping{{ContainerId: 0, HostId: 100000, Length: 65536}}
	k := newKubelet(t, p, "userns", &cri.UserNamespace{Mode: cri.NamespaceMode_POD, Uids: ids, Gids: ids})
	status, err := k.runtime.PodSandboxStatus(k.ctx, &cri.PodSandboxStatusRequest{PodSandboxId: k.pod, Verbose: true})
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

	runtimes, err := k.runtime.Status(k.ctx, &cri.StatusRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if !slices.ContainsFunc(runtimes.RuntimeHandlers, func(h *cri.RuntimeHandler) bool { return h.GetFeatures().GetUserNamespaces() }) {
		t.Log("no container in the sandbox: that needs runc 1.2, which maps the owners of bind mounts")
		return
	}
	out := k.exec(k.run(p.ref), "sh", "-c", "touch /new && stat -c %u:%g / /new /usr/bin/env && cat /proc/self/uid_map")
	if strings.Join(strings.Fields(out), " ") != "0:0 0:0 0:0 0 100000 65536" {
		t.Errorf("%q", out)
	}
}
