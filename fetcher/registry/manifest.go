package registry

import (
	"context"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/containerd/v2/pkg/reference"
	"github.com/opencontainers/go-digest"
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
	var got digest.Digest
	a, err := r.get(ctx, c, func(body []byte) error {
		if want == "" {
			got = digest.FromBytes(body)
			return nil
		}
		if got = want.Algorithm().FromBytes(body); got != want {
			return fmt.Errorf("content has digest %s", got)
		}
		return nil
	})
	if err != nil {
		return v1.Descriptor{}, nil, err
	}
	media, _, _ := strings.Cut(a.header.Get("Content-Type"), ";")
	return v1.Descriptor{MediaType: media, Digest: got, Size: int64(len(a.body))}, a.body, nil
}

// small is an answer that was read whole.
type small struct {
	body   []byte
	header http.Header
	from   string // base URL of the host that gave it
}

// get reads a small answer whole, with retries. Where verify, if not nil, fails,
// the next host is asked.
func (r *Repository) get(ctx context.Context, c call, verify func(body []byte) error) (got small, err error) {
	bad := map[string]time.Time{} // hosts whose answers were wrong
	c.last = func(key string) time.Time { return bad[key] }
	err = r.do(ctx, false, func() error {
		for {
			got, err = r.read(ctx, c)
			if err != nil || verify == nil {
				return err
			}
			wrong := verify(got.body)
			if wrong == nil {
				return nil
			}
			if !bad[got.from].IsZero() {
				return &Error{Op: c.op, Repo: r.Name(), Err: &BadBytesError{Repo: r.Name(), Hosts: slices.Sorted(maps.Keys(bad)), Err: wrong}, retry: retryNever}
			}
			bad[got.from] = time.Now()
		}
	})
	return got, err
}

func (r *Repository) read(ctx context.Context, c call) (small, error) {
	a, err := r.send(ctx, c)
	if err != nil {
		return small{}, err
	}
	defer a.Body.Close()
	host := a.Request.URL.Host
	body, err := io.ReadAll(io.LimitReader(a.Body, maxManifest+1))
	if err != nil {
		return small{}, r.failure(c, host, a.StatusCode, redact(err))
	}
	if len(body) > maxManifest {
		return small{}, r.failure(c, host, http.StatusNotImplemented, fmt.Errorf("more than %d bytes", maxManifest))
	}
	return small{body, a.Header, a.from.key}, nil
}
