package integration

import (
	"context"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// TestCRI does what a kubelet does: pull, sandbox on the host's network,
// container, exec.
func TestCRI(t *testing.T) {
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

	before := p.link.Received()
	pulled, err := images.PullImage(ctx, &cri.PullImageRequest{Image: &cri.ImageSpec{Image: p.ref}})
	if err != nil {
		t.Fatal(err)
	}
	sandboxConfig := &cri.PodSandboxConfig{
		Metadata:     &cri.PodSandboxMetadata{Name: "pod", Namespace: "default", Uid: "uid"},
		LogDirectory: t.TempDir(),
		Linux: &cri.LinuxPodSandboxConfig{SecurityContext: &cri.LinuxSandboxSecurityContext{
			NamespaceOptions: &cri.NamespaceOption{Network: cri.NamespaceMode_NODE},
		}},
	}
	pod, err := runtime.RunPodSandbox(ctx, &cri.RunPodSandboxRequest{Config: sandboxConfig})
	if err != nil {
		t.Log(p.containerd.Tail())
		time.Sleep(1 * time.Second)
		t.Fatal(err)
	}
	defer func() {
		ctx := context.WithoutCancel(ctx)
		_, _ = runtime.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: pod.PodSandboxId})
		if _, err := runtime.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: pod.PodSandboxId}); err != nil {
			t.Error(err)
		}
		if _, err := images.RemoveImage(ctx, &cri.RemoveImageRequest{Image: &cri.ImageSpec{Image: p.ref}}); err != nil {
			t.Error(err)
		}
	}()
	created, err := runtime.CreateContainer(ctx, &cri.CreateContainerRequest{
		PodSandboxId:  pod.PodSandboxId,
		SandboxConfig: sandboxConfig,
		Config: &cri.ContainerConfig{
			Metadata: &cri.ContainerMetadata{Name: "c"},
			Image:    &cri.ImageSpec{Image: pulled.ImageRef},
			Command:  []string{"sleep", "1000"},
			Linux:    &cri.LinuxContainerConfig{},
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := runtime.StartContainer(ctx, &cri.StartContainerRequest{ContainerId: created.ContainerId}); err != nil {
		t.Fatal(err)
	}
	out, err := runtime.ExecSync(ctx, &cri.ExecSyncRequest{ContainerId: created.ContainerId, Cmd: []string{"python3", "/app/main.py"}, Timeout: 60})
	if err != nil || out.ExitCode != 0 || !strings.Contains(string(out.Stdout), "ready") {
		t.Fatalf("%v %v", out, err)
	}
	p.lazy(t, before)
	usage, err := images.ImageFsInfo(ctx, &cri.ImageFsInfoRequest{})
	if err != nil || len(usage.ImageFilesystems) == 0 {
		t.Errorf("%v %v", usage, err)
	}
}
