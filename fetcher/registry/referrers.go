package registry

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// maxPages bounds a list of referrers. Registries put some dozens on a page, and
// those that filter have few of ours.
const maxPages = 64

// Referrers lists what refers to a manifest and has the given artifact type. It
// asks the referrers API and, at the same time, for the tag that the
// distribution specification has for registries without it.
//
// The list is empty only where the registry has said that there are none: a
// refusal of credentials, among others, is an error. What has no valid digest, which
// would be a part of a request's path, is left out.
func (r *Repository) Referrers(ctx context.Context, subject digest.Digest, artifactType string) ([]v1.Descriptor, error) {
	type answer struct {
		list []v1.Descriptor
		err  error
	}
	tag := make(chan answer, 1)
	go func() {
		a, err := r.get(ctx, call{
			op: "get referrers tag of " + subject.String(), path: "manifests/" + subject.Algorithm().String() + "-" + subject.Encoded(),
			cap: docker.HostCapabilityPull, header: http.Header{"Accept": {v1.MediaTypeImageIndex}}, accept: []int{http.StatusOK},
		}, nil)
		tag <- answer{manifests(a.body), err}
	}()
	listed, err := r.listReferrers(ctx, subject, artifactType)
	fallback := <-tag
	if err != nil && fallback.err != nil {
		var e *Error
		switch {
		case NotFound(err) && NotFound(fallback.err):
			return nil, nil
		case NotFound(err):
			// A registry without the API says so before it looks at credentials.
			return nil, fallback.err
		case NotFound(fallback.err) && errors.As(err, &e) && e.Status != 0 && !temporary(err):
			return nil, nil // an unknown API may be refused in many ways
		}
		return nil, err
	}
	var found []v1.Descriptor
	seen := map[digest.Digest]bool{}
	for _, d := range append(listed, fallback.list...) {
		if d.ArtifactType == artifactType && d.Digest.Validate() == nil && !seen[d.Digest] {
			seen[d.Digest] = true
			found = append(found, d)
		}
	}
	return found, nil
}

// ListsReferrer reports whether the registry's referrers API exists and lists
// a referrer of the subject.
func (r *Repository) ListsReferrer(ctx context.Context, subject, referrer digest.Digest) (bool, error) {
	list, err := r.listReferrers(ctx, subject, "")
	if NotFound(err) {
		return false, nil
	}
	return slices.ContainsFunc(list, func(d v1.Descriptor) bool { return d.Digest == referrer }), err
}

// listReferrers reads all pages of the referrers API. A type, if not empty, is for
// registries that filter: others list all.
func (r *Repository) listReferrers(ctx context.Context, subject digest.Digest, artifactType string) ([]v1.Descriptor, error) {
	c := call{
		op: "get referrers of " + subject.String(), path: "referrers/" + subject.String(),
		cap: docker.HostCapabilityPull, header: http.Header{"Accept": {v1.MediaTypeImageIndex}}, accept: []int{http.StatusOK},
	}
	if artifactType != "" {
		c.query = url.Values{"artifactType": {artifactType}}.Encode()
	}
	var list []v1.Descriptor
	for range maxPages {
		a, err := r.get(ctx, c, nil)
		if err != nil {
			return nil, err
		}
		for _, d := range manifests(a.body) {
			if artifactType == "" || d.ArtifactType == artifactType {
				list = append(list, d)
			}
		}
		next, ok := nextPage(a.header, c.path)
		if !ok {
			return list, nil
		}
		c.query, c.only = next, a.from // another host's pages are cut in other places
	}
	return nil, &Error{Op: c.op, Repo: r.Name(), Err: fmt.Errorf("more than %d pages", maxPages), retry: retryNever}
}

// nextPage is the query of the page behind this one: RFC 8288, and "Listing
// Referrers" of the distribution specification. Nothing of the link but its query
// is used, so that it leads to no other place.
func nextPage(h http.Header, path string) (query string, ok bool) {
	for _, v := range h.Values("Link") {
		for link := range strings.SplitSeq(v, ",") {
			target, params, found := strings.Cut(strings.TrimSpace(link), ">")
			if !found || !strings.HasPrefix(target, "<") || !strings.Contains(strings.ReplaceAll(params, `"`, ""), "rel=next") {
				continue
			}
			u, err := url.Parse(target[1:])
			if err == nil && strings.HasSuffix(u.Path, path) && u.RawQuery != "" {
				return u.RawQuery, true
			}
		}
	}
	return "", false
}

// manifests reads an image index. What is none lists nothing: some registries answer
// unknown paths with a page.
func manifests(body []byte) []v1.Descriptor {
	var index v1.Index
	if err := json.Unmarshal(body, &index); err != nil || index.Versioned != (specs.Versioned{SchemaVersion: 2}) {
		return nil
	}
	return index.Manifests
}
