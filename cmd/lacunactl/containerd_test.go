package main

import (
	"bytes"
	"context"
	"net"
	"path/filepath"
	"strings"
	"testing"

	contentapi "github.com/containerd/containerd/api/services/content/v1"
	imagesapi "github.com/containerd/containerd/api/services/images/v1"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/plugins/content/local"
	"github.com/containerd/containerd/v2/plugins/services/content/contentserver"
	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// images knows one image, in one namespace.
type images struct {
	imagesapi.UnimplementedImagesServer
	name   string
	target digest.Digest
}

func (i images) Get(ctx context.Context, r *imagesapi.GetImageRequest) (*imagesapi.GetImageResponse, error) {
	md, _ := metadata.FromIncomingContext(ctx)
	if ns := md.Get("containerd-namespace"); len(ns) != 1 || ns[0] != "k8s.io" || r.GetName() != i.name {
		return nil, status.Error(codes.NotFound, "no such image")
	}
	return &imagesapi.GetImageResponse{Image: &imagesapi.Image{Name: i.name, Target: &types.Descriptor{MediaType: v1.MediaTypeImageManifest, Digest: i.target.String()}}}, nil
}

// TestContainerd has the image in containerd's content store, behind its own
// service, and no registry.
func TestContainerd(t *testing.T) {
	i := makeImage(t, v1.MediaTypeImageLayerGzip, v1.MediaTypeImageLayerGzip)
	store, err := local.NewStore(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	i.blobs[digest.FromBytes(i.manifest)] = i.manifest
	for d, b := range i.blobs {
		if err := content.WriteBlob(t.Context(), store, d.String(), bytes.NewReader(b), v1.Descriptor{Digest: d, Size: int64(len(b))}); err != nil {
			t.Fatal(err)
		}
	}
	const ref = "registry.invalid/app:1"
	socket := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	contentapi.RegisterContentServer(server, contentserver.New(store))
	imagesapi.RegisterImagesServer(server, images{name: ref, target: digest.FromBytes(i.manifest)})
	go func() { _ = server.Serve(l) }()
	defer server.Stop()

	got, want := t.TempDir(), t.TempDir()
	create := []string{"index", "create", "--containerd", socket, "--namespace", "k8s.io"}
	if r := lacunactl(t, got, "", append(create, ref)...); r.status != 0 {
		t.Fatalf("%+v", r)
	}
	if r := lacunactl(t, want, "", "index", "create", "--plain-http", i.serve(t).Ref("latest")); r.status != 0 {
		t.Fatalf("%+v", r)
	}
	same(t, want, got)
	if r := lacunactl(t, t.TempDir(), "", append(create, "registry.invalid/app:2")...); r.status != exitFailed || !strings.Contains(r.err, "no such image") {
		t.Errorf("another image: %+v", r)
	}
	// As after a lazy pull.
	for d := range i.blobs {
		if err := store.Delete(t.Context(), d); err != nil {
			t.Fatal(err)
		}
	}
	if r := lacunactl(t, t.TempDir(), "", append(create, ref)...); r.status != exitFailed || !strings.Contains(r.err, "does not have") {
		t.Errorf("without content: %+v", r)
	}
}
