// Package registrytest is a registry that misbehaves on purpose: it serves
// manifests and blobs from memory and has a fault for everything that real
// registries and the networks before them have been seen to do.
package registrytest

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
)

// Fault changes how one blob request is answered. It returns whether it did so.
type Fault func(w http.ResponseWriter, req *http.Request, content []byte) bool

// Registry is the server. Its fields may be changed with Set while it runs.
type Registry struct {
	*httptest.Server
	t testing.TB

	mu        sync.Mutex
	blobs     map[digest.Digest][]byte
	manifests map[string][]byte // by tag and by digest
	referrers map[string][]byte // by subject
	faults    []Fault
	requests  []string
	token     string // required when not empty
	tokens    int    // tokens handed out
}

// New starts a registry that ends with the test.
func New(t testing.TB) *Registry {
	r := &Registry{t: t, blobs: map[digest.Digest][]byte{}, manifests: map[string][]byte{}, referrers: map[string][]byte{}}
	r.Server = httptest.NewServer(http.HandlerFunc(r.serve))
	t.Cleanup(r.Close)
	return r
}

// Ref is an image reference on this registry, with its plain-HTTP host.
func (r *Registry) Ref(tag string) string {
	return strings.TrimPrefix(r.URL, "http://") + "/test/image:" + tag
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

// AddReferrers makes the referrers API answer for a subject.
func (r *Registry) AddReferrers(subject digest.Digest, index []byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.referrers[subject.String()] = index
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

// Tokens returns how many tokens were handed out.
func (r *Registry) Tokens() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.tokens
}

func (r *Registry) serve(w http.ResponseWriter, req *http.Request) {
	r.mu.Lock()
	r.requests = append(r.requests, strings.TrimSpace(req.Method+" "+req.URL.Path+" "+req.Header.Get("Range")))
	token := r.token
	r.mu.Unlock()
	if req.URL.Path == "/token" {
		r.mu.Lock()
		r.tokens++
		r.mu.Unlock()
		w.Header().Set("Content-Type", "application/json")
		fmt.Fprintf(w, `{"token":%q}`, token)
		return
	}
	if token != "" && req.Header.Get("Authorization") != "Bearer "+token {
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
		r.serveBytes(w, r.lookup(r.referrers, object), "application/vnd.oci.image.index.v1+json")
	case strings.HasSuffix(req.URL.Path[:i], "/blobs"):
		r.serveBlob(w, req, object)
	default:
		w.WriteHeader(http.StatusNotFound)
	}
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

// Status answers with a status, and with Retry-After where seconds is not "".
func Status(code int, seconds string) Fault {
	return func(w http.ResponseWriter, _ *http.Request, _ []byte) bool {
		if seconds != "" {
			w.Header().Set("Retry-After", seconds)
		}
		w.WriteHeader(code)
		return true
	}
}

// Whole ignores the range and answers 200 with everything.
func Whole(w http.ResponseWriter, req *http.Request, content []byte) bool {
	req.Header.Del("Range")
	ServeRange(w, req, content)
	return true
}

// Short announces the whole range and breaks off after n bytes.
func Short(n int) Fault {
	return func(w http.ResponseWriter, req *http.Request, content []byte) bool {
		first, last := bounds(req)
		w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", first, last, len(content)))
		w.Header().Set("Content-Length", strconv.Itoa(last-first+1))
		w.WriteHeader(http.StatusPartialContent)
		_, _ = w.Write(content[first : first+n])
		panic(http.ErrAbortHandler)
	}
}

// OtherRange answers with a range that was not asked for.
func OtherRange(w http.ResponseWriter, req *http.Request, content []byte) bool {
	first, last := bounds(req)
	w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", first+1, last, len(content)))
	w.WriteHeader(http.StatusPartialContent)
	_, _ = w.Write(content[first+1 : last+1])
	return true
}

// Flip damages one byte of the answer.
func Flip(w http.ResponseWriter, req *http.Request, content []byte) bool {
	first, last := bounds(req)
	bad := append([]byte(nil), content...)
	bad[(first+last)/2] ^= 0x40
	ServeRange(w, req, bad)
	return true
}

// Redirect sends the client elsewhere.
func Redirect(to string) Fault {
	return func(w http.ResponseWriter, req *http.Request, _ []byte) bool {
		http.Redirect(w, req, to, http.StatusTemporaryRedirect)
		return true
	}
}

// Hang answers the header and then nothing until the client goes away.
func Hang(w http.ResponseWriter, req *http.Request, content []byte) bool {
	first, last := bounds(req)
	w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", first, last, len(content)))
	w.WriteHeader(http.StatusPartialContent)
	_ = http.NewResponseController(w).Flush()
	<-req.Context().Done()
	return true
}

func bounds(req *http.Request) (first, last int) {
	_, _ = fmt.Sscanf(req.Header.Get("Range"), "bytes=%d-%d", &first, &last)
	return first, last
}
