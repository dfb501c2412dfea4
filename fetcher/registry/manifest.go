package registry

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/containerd/v2/pkg/reference"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// maxManifest is what the distribution specification asks registries to accept.
const maxManifest = 4 << 20

// Manifest media types that image pulls meet.
var manifestTypes = strings.Join([]string{
	v1.MediaTypeImageManifest,
	v1.MediaTypeImageIndex,
	"application/vnd.docker.distribution.manifest.v2+json",
	"application/vnd.docker.distribution.manifest.list.v2+json",
}, ", ")

// Repository is one repository of one registry.
type Repository struct {
	client   *Client
	registry string
	path     string
}

// Repository splits an image reference such as "docker.io/library/nginx:1" and
// returns its repository and the tag or digest behind it.
func (c *Client) Repository(ref string) (repo *Repository, object string, err error) {
	spec, err := reference.Parse(ref)
	if err != nil {
		return nil, "", fmt.Errorf("image reference %q: %w", ref, err)
	}
	host := spec.Hostname()
	path := strings.TrimPrefix(spec.Locator, host+"/")
	object = spec.Object
	if d := spec.Digest(); d != "" {
		object = d.String()
	}
	return &Repository{client: c, registry: host, path: path}, object, nil
}

// Name is the repository as image references have it.
func (r *Repository) Name() string { return r.registry + "/" + r.path }

// Manifest fetches a manifest or image index by tag or digest.
func (r *Repository) Manifest(ctx context.Context, object string) (v1.Descriptor, []byte, error) {
	c := call{
		op: "get manifest " + object, path: "manifests/" + object, cap: docker.HostCapabilityPull,
		header: http.Header{"Accept": {manifestTypes}}, accept: []int{http.StatusOK},
	}
	want, err := digest.Parse(object)
	if err != nil {
		want, c.cap = "", docker.HostCapabilityResolve
	}
	body, header, err := r.get(ctx, c)
	if err != nil {
		return v1.Descriptor{}, nil, err
	}
	got := digest.FromBytes(body)
	if want != "" {
		got = want.Algorithm().FromBytes(body)
	}
	if want != "" && got != want {
		return v1.Descriptor{}, nil, &Error{Op: c.op, Repo: r.Name(), Err: fmt.Errorf("content has digest %s", got)}
	}
	media, _, _ := strings.Cut(header.Get("Content-Type"), ";")
	return v1.Descriptor{MediaType: media, Digest: got, Size: int64(len(body))}, body, nil
}

// Referrers lists what refers to a manifest and has the given artifact type. It
// asks the referrers API and, at the same time, for the tag that the
// distribution specification has for registries without it.
func (r *Repository) Referrers(ctx context.Context, subject digest.Digest, artifactType string) ([]v1.Descriptor, error) {
	type answer struct {
		body []byte
		err  error
	}
	tag := make(chan answer, 1)
	go func() {
		body, _, err := r.get(ctx, call{
			op: "get referrers tag of " + subject.String(), path: "manifests/" + subject.Algorithm().String() + "-" + subject.Encoded(),
			cap: docker.HostCapabilityPull, header: http.Header{"Accept": {v1.MediaTypeImageIndex}}, accept: []int{http.StatusOK},
		})
		tag <- answer{body, err}
	}()
	body, _, err := r.get(ctx, referrersCall(subject))
	fallback := <-tag
	var lists [][]byte
	if err == nil {
		lists = append(lists, body)
	}
	if fallback.err == nil {
		lists = append(lists, fallback.body)
	}
	if len(lists) == 0 {
		if NotFound(err) || NotFound(fallback.err) && !temporary(err) {
			return nil, nil
		}
		return nil, err
	}
	var found []v1.Descriptor
	seen := map[digest.Digest]bool{}
	for _, list := range lists {
		var index v1.Index
		if err := json.Unmarshal(list, &index); err != nil || index.Versioned != (specs.Versioned{SchemaVersion: 2}) {
			continue // some registries answer unknown paths with a page
		}
		for _, d := range index.Manifests {
			if d.ArtifactType == artifactType && !seen[d.Digest] {
				seen[d.Digest] = true
				found = append(found, d)
			}
		}
	}
	return found, nil
}

// get reads a small answer whole, with retries.
func (r *Repository) get(ctx context.Context, c call) (body []byte, header http.Header, err error) {
	err = r.do(ctx, false, func() error {
		resp, err := r.send(ctx, c)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		host := resp.Request.URL.Host
		body, err = io.ReadAll(io.LimitReader(resp.Body, maxManifest+1))
		if err != nil {
			return r.failure(c, host, resp.StatusCode, redact(err))
		}
		if len(body) > maxManifest {
			return r.failure(c, host, http.StatusNotImplemented, fmt.Errorf("more than %d bytes", maxManifest))
		}
		header = resp.Header
		return nil
	})
	return body, header, err
}

// ListsReferrer reports whether the registry's referrers API exists and lists
// a referrer of the subject.
func (r *Repository) ListsReferrer(ctx context.Context, subject, referrer digest.Digest) (bool, error) {
	body, _, err := r.get(ctx, referrersCall(subject))
	if NotFound(err) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	var index v1.Index
	_ = json.Unmarshal(body, &index) // a registry without the API may answer with a page
	return slices.ContainsFunc(index.Manifests, func(d v1.Descriptor) bool { return d.Digest == referrer }), nil
}

func referrersCall(subject digest.Digest) call {
	return call{
		op: "get referrers of " + subject.String(), path: "referrers/" + subject.String(),
		cap: docker.HostCapabilityPull, header: http.Header{"Accept": {v1.MediaTypeImageIndex}}, accept: []int{http.StatusOK},
	}
}
