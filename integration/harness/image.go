package harness

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// Image is an image that can be pushed: gzip layers in files, base first, and a command.
type Image struct {
	Layers []string
	Cmd    []string
}

// Size is the layers' size in bytes.
func (i *Image) Size() (n int64, err error) {
	for _, path := range i.Layers {
		info, err := os.Stat(path)
		if err != nil {
			return 0, err
		}
		n += info.Size()
	}
	return n, nil
}

// Push sends the image to a plain-HTTP registry and returns its manifest.
func (i *Image) Push(ctx context.Context, ref string) (v1.Descriptor, error) {
	resolver := docker.NewResolver(docker.ResolverOptions{
		Hosts:   docker.ConfigureDefaultRegistries(docker.WithPlainHTTP(docker.MatchAllHosts)),
		Tracker: docker.NewInMemoryTracker(),
	})
	pusher, err := resolver.Pusher(ctx, ref)
	if err != nil {
		return v1.Descriptor{}, err
	}
	config := v1.Image{Platform: v1.Platform{OS: "linux", Architecture: "amd64"}}
	config.Config.Cmd = i.Cmd
	config.Config.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
	config.RootFS.Type = "layers"
	m := v1.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: v1.MediaTypeImageManifest}
	for _, path := range i.Layers {
		desc, diffID, err := describe(path)
		if err != nil {
			return v1.Descriptor{}, fmt.Errorf("%s: %w", path, err)
		}
		f, err := os.Open(path)
		if err != nil {
			return v1.Descriptor{}, err
		}
		err = send(ctx, pusher, desc, f)
		f.Close()
		if err != nil {
			return v1.Descriptor{}, err
		}
		m.Layers = append(m.Layers, desc)
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, diffID)
	}
	if m.Config, err = sendJSON(ctx, pusher, v1.MediaTypeImageConfig, config); err != nil {
		return v1.Descriptor{}, err
	}
	return sendJSON(ctx, pusher, v1.MediaTypeImageManifest, m)
}

// describe reads a layer for its digests.
func describe(path string) (v1.Descriptor, digest.Digest, error) {
	f, err := os.Open(path)
	if err != nil {
		return v1.Descriptor{}, "", err
	}
	defer f.Close()
	packed, plain := digest.Canonical.Digester(), digest.Canonical.Digester()
	z, err := gzip.NewReader(io.TeeReader(f, packed.Hash()))
	if err != nil {
		return v1.Descriptor{}, "", err
	}
	if _, err := io.Copy(plain.Hash(), z); err != nil {
		return v1.Descriptor{}, "", err
	}
	if _, err := io.Copy(packed.Hash(), f); err != nil {
		return v1.Descriptor{}, "", err
	}
	info, err := f.Stat()
	if err != nil {
		return v1.Descriptor{}, "", err
	}
	return v1.Descriptor{MediaType: v1.MediaTypeImageLayerGzip, Digest: packed.Digest(), Size: info.Size()}, plain.Digest(), nil
}

func sendJSON(ctx context.Context, pusher remotes.Pusher, media string, v any) (v1.Descriptor, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return v1.Descriptor{}, err
	}
	desc := v1.Descriptor{MediaType: media, Digest: digest.FromBytes(b), Size: int64(len(b))}
	return desc, send(ctx, pusher, desc, bytes.NewReader(b))
}

func send(ctx context.Context, pusher remotes.Pusher, desc v1.Descriptor, r io.Reader) error {
	w, err := pusher.Push(ctx, desc)
	if errors.Is(err, errdefs.ErrAlreadyExists) {
		return nil
	}
	if err != nil {
		return err
	}
	defer w.Close()
	return content.Copy(ctx, w, r, desc.Size, desc.Digest)
}
