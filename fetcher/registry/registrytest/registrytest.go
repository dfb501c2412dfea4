// Package registrytest is a registry that misbehaves on purpose: it serves
// manifests and blobs from memory and has a fault for everything that real
// registries and the networks before them have been seen to do.
package registrytest

import (
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
)

// Registry is the server. Its fields may be changed with Set while it runs.
type Registry struct {
	*httptest.Server
	t testing.TB

	mu        sync.Mutex
	blobs     map[digest.Digest][]byte
	manifests map[string][]byte   // by tag and by digest
	referrers map[string][]byte   // by subject
	pages     map[string][]string // queries of further pages, by subject
	faults    []Fault
	requests  []string
	queries   []string // of those, in their order
	token     string   // required when not empty
	life      int      // seconds that a token is said to last, if not 0
	tokens    int      // asked for
	tokenBad  []Fault
	openAPI   bool // the referrers API answers before authorization
}

// New starts a registry that ends with the test.
func New(t testing.TB) *Registry {
	r := registry(t)
	r.Start()
	t.Cleanup(r.Close)
	return r
}

// NewTLS starts a registry with TLS and HTTP/2, ten streams a connection. No client
// trusts its certificate by default: CA writes it.
func NewTLS(t testing.TB) *Registry {
	r := registry(t)
	r.EnableHTTP2 = true
	r.Config.HTTP2 = &http.HTTP2Config{MaxConcurrentStreams: 10}
	r.StartTLS()
	t.Cleanup(r.Close)
	return r
}

func registry(t testing.TB) *Registry {
	r := &Registry{
		t: t, blobs: map[digest.Digest][]byte{}, manifests: map[string][]byte{},
		referrers: map[string][]byte{}, pages: map[string][]string{},
	}
	r.Server = httptest.NewUnstartedServer(http.HandlerFunc(r.serve))
	r.Config.ErrorLog = log.New(io.Discard, "", 0) // clients that break off are the point
	return r
}

// CA writes the certificate of a registry with TLS to a file.
func (r *Registry) CA(path string) {
	r.t.Helper()
	block := &pem.Block{Type: "CERTIFICATE", Bytes: r.Certificate().Raw}
	if err := os.WriteFile(path, pem.EncodeToMemory(block), 0o600); err != nil {
		r.t.Fatal(err)
	}
}

// Host is the registry's address as image references have it.
func (r *Registry) Host() string {
	_, host, _ := strings.Cut(r.URL, "://")
	return host
}

// Ref is an image reference on this registry, with its plain-HTTP host.
func (r *Registry) Ref(tag string) string {
	return r.Host() + "/test/image:" + tag
}

// AddBlob stores a blob.
func (r *Registry) AddBlob(b []byte) digest.Digest {
	r.mu.Lock()
	defer r.mu.Unlock()
	d := digest.FromBytes(b)
	r.blobs[d] = b
	return d
}

// AddManifest stores a manifest under its digest and a tag.
func (r *Registry) AddManifest(tag string, b []byte) digest.Digest {
	r.mu.Lock()
	defer r.mu.Unlock()
	d := digest.FromBytes(b)
	r.manifests[tag], r.manifests[d.String()] = b, b
	return d
}

// Remove deletes a blob or a manifest.
func (r *Registry) Remove(d digest.Digest) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.blobs, d)
	delete(r.manifests, d.String())
}

// AddReferrers makes the referrers API answer for a subject.
func (r *Registry) AddReferrers(subject digest.Digest, index []byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.referrers[subject.String()] = index
}

// AddPages makes the referrers API answer in pages: query leads from each to the
// next.
func (r *Registry) AddPages(subject digest.Digest, pages ...[]byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for i, p := range pages {
		key := subject.String()
		if i > 0 {
			key += fmt.Sprintf("?page=%d", i)
		}
		r.referrers[key] = p
		if i+1 < len(pages) {
			r.pages[key] = []string{fmt.Sprintf("page=%d", i+1)}
		}
	}
}

// OpenAPI makes the referrers API answer before it looks at credentials, as
// registries do that have none: 404.
func (r *Registry) OpenAPI() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.openAPI = true
}

// FailTokens makes the next token requests go through the given faults, one each.
func (r *Registry) FailTokens(faults ...Fault) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.tokenBad = append(r.tokenBad, faults...)
}

// TokenLife makes tokens say that they last for some seconds.
func (r *Registry) TokenLife(seconds int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.life = seconds
}

// Queries returns the queries of what Requests returns.
func (r *Registry) Queries() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]string(nil), r.queries...)
}

// Fail makes the next blob requests go through the given faults, one each.
func (r *Registry) Fail(faults ...Fault) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.faults = append(r.faults, faults...)
}

// ClearFaults forgets the faults that no request has met.
func (r *Registry) ClearFaults() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.faults = nil
}

// RequireToken makes every request need a bearer token; a new value makes all
// tokens handed out before it stale.
func (r *Registry) RequireToken(token string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.token = token
}

// Requests returns what was asked so far: method, path and range of each.
func (r *Registry) Requests() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]string(nil), r.requests...)
}

// Tokens returns how many tokens were asked for.
func (r *Registry) Tokens() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.tokens
}

func (r *Registry) serve(w http.ResponseWriter, req *http.Request) {
	r.mu.Lock()
	r.requests = append(r.requests, strings.TrimSpace(req.Method+" "+req.URL.Path+" "+req.Header.Get("Range")))
	r.queries = append(r.queries, req.URL.RawQuery)
	token, open := r.token, r.openAPI && strings.Contains(req.URL.Path, "/referrers/")
	r.mu.Unlock()
	if req.URL.Path == "/token" {
		r.serveToken(w, req)
		return
	}
	if token != "" && !open && req.Header.Get("Authorization") != "Bearer "+token {
		w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="%s/token",service="test"`, r.URL))
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	i := strings.LastIndex(req.URL.Path, "/")
	object := req.URL.Path[i+1:]
	switch {
	case strings.HasSuffix(req.URL.Path[:i], "/manifests"):
		r.serveBytes(w, r.lookup(r.manifests, object), "application/vnd.oci.image.manifest.v1+json")
	case strings.HasSuffix(req.URL.Path[:i], "/referrers"):
		r.servePage(w, req, object)
	case strings.HasSuffix(req.URL.Path[:i], "/blobs"):
		r.serveBlob(w, req, object)
	default:
		w.WriteHeader(http.StatusNotFound)
	}
}

func (r *Registry) serveToken(w http.ResponseWriter, req *http.Request) {
	r.mu.Lock()
	r.tokens++
	var fault Fault
	if len(r.tokenBad) > 0 {
		fault, r.tokenBad = r.tokenBad[0], r.tokenBad[1:]
	}
	r.mu.Unlock()
	if fault != nil && fault(w, req, nil) {
		return
	}
	r.mu.Lock()
	token, life := r.token, r.life
	r.mu.Unlock()
	w.Header().Set("Content-Type", "application/json")
	fmt.Fprintf(w, `{"token":%q,"expires_in":%d}`, token, life)
}

func (r *Registry) servePage(w http.ResponseWriter, req *http.Request, object string) {
	if page := req.URL.Query().Get("page"); page != "" {
		object += "?page=" + page
	}
	r.mu.Lock()
	next := r.pages[object]
	r.mu.Unlock()
	for _, query := range next {
		w.Header().Set("Link", fmt.Sprintf(`<%s?%s>; rel="next"`, req.URL.Path, query))
	}
	r.serveBytes(w, r.lookup(r.referrers, object), "application/vnd.oci.image.index.v1+json")
}

func (r *Registry) lookup(m map[string][]byte, key string) []byte {
	r.mu.Lock()
	defer r.mu.Unlock()
	return m[key]
}

func (r *Registry) serveBytes(w http.ResponseWriter, b []byte, media string) {
	if b == nil {
		w.WriteHeader(http.StatusNotFound)
		return
	}
	w.Header().Set("Content-Type", media)
	_, _ = w.Write(b)
}

func (r *Registry) serveBlob(w http.ResponseWriter, req *http.Request, object string) {
	r.mu.Lock()
	content, ok := r.blobs[digest.Digest(object)]
	var fault Fault
	if len(r.faults) > 0 {
		fault, r.faults = r.faults[0], r.faults[1:]
	}
	r.mu.Unlock()
	if fault != nil && fault(w, req, content) {
		return
	}
	if !ok {
		w.WriteHeader(http.StatusNotFound)
		return
	}
	ServeRange(w, req, content)
}

// ServeRange answers a range request as it should be.
func ServeRange(w http.ResponseWriter, req *http.Request, content []byte) {
	http.ServeContent(w, req, "", time.Time{}, strings.NewReader(string(content)))
}
