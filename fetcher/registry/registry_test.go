package registry

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/lacuna-snapshotter/lacuna/fetcher/registry/registrytest"
)

var quick = Retry{Attempts: 4, Base: time.Millisecond, Max: 50 * time.Millisecond, MaxAfter: 50 * time.Millisecond}

func newBlob(t *testing.T, reg *registrytest.Registry, content []byte, opts Options) *Content {
	t.Helper()
	opts.PlainHTTP = true
	sleep := opts.Retry.Sleep
	opts.Retry = quick
	opts.Retry.Sleep = sleep
	if opts.Stall == 0 {
		opts.Stall = 5 * time.Second
	}
	c, err := New(opts)
	if err != nil {
		t.Fatal(err)
	}
	repo, _, err := c.Repository(reg.Ref("latest"))
	if err != nil {
		t.Fatal(err)
	}
	return repo.Content(v1.Descriptor{Digest: reg.AddBlob(content), Size: int64(len(content))})
}

func content(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i>>8 ^ i*7)
	}
	return b
}

func TestReadAt(t *testing.T) {
	data := content(300000)
	for name, tc := range map[string]struct {
		faults []registrytest.Fault
		stall  time.Duration
		want   string // part of the error; empty means success
		asked  int    // requests
	}{
		"plain":                {asked: 1},
		"range answered 200":   {faults: []registrytest.Fault{registrytest.Whole}, asked: 1},
		"short body":           {faults: []registrytest.Fault{registrytest.Short(1000), registrytest.Short(0)}, asked: 3},
		"server errors":        {faults: []registrytest.Fault{registrytest.Status(500, ""), registrytest.Status(503, "")}, asked: 3},
		"rate limit":           {faults: []registrytest.Fault{registrytest.Status(429, "1")}, asked: 2},
		"rate limit, for long": {faults: repeat(registrytest.Status(429, "3600"), 9), want: "limits the rate", asked: 4},
		"down for good":        {faults: repeat(registrytest.Status(502, ""), 9), want: "status 502", asked: 4},
		"stall":                {faults: []registrytest.Fault{registrytest.Hang}, stall: 50 * time.Millisecond, asked: 2},
		"not found":            {faults: []registrytest.Fault{registrytest.Status(404, "")}, want: "status 404", asked: 1},
		"range refused":        {faults: []registrytest.Fault{registrytest.Status(416, "")}, want: "status 416", asked: 1},
		"another range":        {faults: []registrytest.Fault{registrytest.OtherRange}, want: "does not fit", asked: 1},
		"redirect loop":        {faults: repeat(registrytest.Redirect("/v2/test/image/blobs/loop"), 99), want: "redirect", asked: 24},
	} {
		t.Run(name, func(t *testing.T) {
			reg := registrytest.New(t)
			b := newBlob(t, reg, data, Options{Stall: tc.stall})
			reg.Fail(tc.faults...)
			p := make([]byte, 200000)
			err := b.ReadAt(t.Context(), p, 777)
			if tc.want == "" {
				if err != nil || !bytes.Equal(p, data[777:777+len(p)]) {
					t.Fatalf("%v, or wrong bytes", err)
				}
			} else if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Fatalf("got %v, want %q", err, tc.want)
			}
			if n := len(reg.Requests()); n != tc.asked {
				t.Errorf("%d requests, want %d: %q", n, tc.asked, reg.Requests())
			}
		})
	}
}

func repeat(f registrytest.Fault, n int) (list []registrytest.Fault) {
	for range n {
		list = append(list, f)
	}
	return list
}

// TestPatience has a registry fail more often than the attempts allow.
func TestPatience(t *testing.T) {
	reg := registrytest.New(t)
	want := content(1000)
	opts := Options{Retry: Retry{Attempts: 3, Base: time.Millisecond, Max: time.Millisecond}}
	b := newBlob(t, reg, want, opts)
	reg.Fail(repeat(registrytest.Status(http.StatusServiceUnavailable, ""), 10)...)
	if err := b.ReadAt(t.Context(), make([]byte, 10), 0); err == nil {
		t.Fatal("ten failures were borne with three attempts")
	}
	b = b.repo.Content(b.desc).Patient()
	reg.Fail(repeat(registrytest.Status(http.StatusServiceUnavailable, ""), 20)...)
	got := make([]byte, len(want))
	if err := b.ReadAt(t.Context(), got, 0); err != nil || !bytes.Equal(got, want) {
		t.Fatal("no patience:", err)
	}
	if len(b.repo.client.Troubles()) != 0 {
		t.Error("a registry that answers is in trouble")
	}
	// Until the reader gives up.
	reg.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if err := b.ReadAt(ctx, got, 0); !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
	troubles := b.repo.client.Troubles()
	if len(troubles) != 1 || troubles[0].Failures < 2 || troubles[0].Error == "" || troubles[0].Since.IsZero() {
		t.Errorf("%+v", troubles)
	}
}

func TestRegistryDown(t *testing.T) {
	reg := registrytest.New(t)
	b := newBlob(t, reg, content(100), Options{})
	reg.Close()
	err := b.ReadAt(t.Context(), make([]byte, 10), 0)
	var e *Error
	if !errors.As(err, &e) || e.Host == "" || !strings.Contains(err.Error(), "refused") {
		t.Fatal(err)
	}
}

func TestTokens(t *testing.T) {
	reg := registrytest.New(t)
	reg.RequireToken("one")
	data := content(5000)
	b := newBlob(t, reg, data, Options{})
	p := make([]byte, 100)
	read := func() error { return b.ReadAt(t.Context(), p, 0) }
	for range 3 {
		if err := read(); err != nil {
			t.Fatal(err)
		}
	}
	if n := reg.Tokens(); n != 1 {
		t.Errorf("%d tokens for three reads", n)
	}
	reg.RequireToken("two") // the first one has expired
	if err := read(); err != nil {
		t.Fatalf("after 401: %v", err)
	}
	reg.Fail(registrytest.Status(http.StatusForbidden, ""))
	if err := read(); err != nil {
		t.Fatalf("after 403: %v", err)
	}
	if n := reg.Tokens(); n != 3 {
		t.Errorf("%d tokens, want 3", n)
	}
	reg.Fail(repeat(registrytest.Status(http.StatusForbidden, ""), 9)...)
	var e *Error
	if err := read(); !errors.As(err, &e) || e.Status != http.StatusForbidden || !strings.Contains(err.Error(), "credentials") {
		t.Fatal(err)
	}
}

func TestCredentialsOfDockerConfig(t *testing.T) {
	var got atomic.Value
	data := content(100)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		user, pass, ok := req.BasicAuth()
		if !ok {
			w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		got.Store(user + ":" + pass)
		registrytest.ServeRange(w, req, data)
	}))
	defer srv.Close()
	host := strings.TrimPrefix(srv.URL, "http://")
	path := filepath.Join(t.TempDir(), "config.json")
	auth := `{"auths":{"` + host + `":{"auth":"dXNlcjpzZWNyZXQ="}}}`
	if err := os.WriteFile(path, []byte(auth), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := New(Options{PlainHTTP: true, DockerConfig: path, Retry: quick})
	if err != nil {
		t.Fatal(err)
	}
	repo, _, err := c.Repository(host + "/a/b:c")
	if err != nil {
		t.Fatal(err)
	}
	b := repo.Content(v1.Descriptor{Digest: digest.FromBytes(data), Size: int64(len(data))})
	if err := b.ReadAt(t.Context(), make([]byte, 10), 5); err != nil {
		t.Fatal(err)
	}
	if got.Load() != "user:secret" {
		t.Errorf("credentials %q", got.Load())
	}
}

// TestRedirect sends blobs to another origin, as registries with object stores
// do, and looks at what that one gets to see.
func TestRedirect(t *testing.T) {
	data := content(9000)
	var leaked atomic.Value
	var served, refuse atomic.Int32
	store := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if a := req.Header.Get("Authorization") + req.Header.Get("X-Secret"); a != "" {
			leaked.Store(a)
		}
		if refuse.Load() > 0 && refuse.Add(-1) >= 0 {
			w.WriteHeader(http.StatusForbidden)
			return
		}
		served.Add(1)
		registrytest.ServeRange(w, req, data)
	}))
	defer store.Close()
	reg := registrytest.New(t)
	reg.RequireToken("t")

	hosts := t.TempDir()
	dir := filepath.Join(hosts, strings.TrimPrefix(reg.URL, "http://"))
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	toml := "server = \"" + reg.URL + "\"\n[host.\"" + reg.URL + "\"]\ncapabilities = [\"pull\", \"resolve\"]\n[host.\"" + reg.URL + "\".header]\nX-Secret = \"s\"\n"
	if err := os.WriteFile(filepath.Join(dir, "hosts.toml"), []byte(toml), 0o644); err != nil {
		t.Fatal(err)
	}
	b := newBlob(t, reg, data, Options{HostsDirs: []string{hosts}})
	reg.Fail(repeat(registrytest.Redirect(store.URL+"/object?signature=hunter2"), 2)...)
	p := make([]byte, 500)
	for range 3 {
		if err := b.ReadAt(t.Context(), p, 1000); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(p, data[1000:1500]) {
			t.Fatal("wrong bytes")
		}
	}
	if v := leaked.Load(); v != nil {
		t.Errorf("the redirect target saw %q", v)
	}
	if served.Load() != 3 {
		t.Errorf("the store served %d reads, want 3", served.Load())
	}
	before := len(reg.Requests())
	refuse.Store(1) // the signature has expired
	if err := b.ReadAt(t.Context(), p, 0); err != nil {
		t.Fatal(err)
	}
	if len(reg.Requests()) == before {
		t.Error("a refused target was not resolved again")
	}
	store.Close()
	reg.Close()
	if err := b.ReadAt(t.Context(), p, 0); err == nil || strings.Contains(err.Error(), "hunter2") {
		t.Errorf("error tells the signature, or is none: %v", err)
	}
}

func TestMirrors(t *testing.T) {
	origin, mirror := registrytest.New(t), registrytest.New(t)
	data := content(4000)
	hosts := t.TempDir()
	dir := filepath.Join(hosts, strings.TrimPrefix(origin.URL, "http://"))
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	toml := "server = \"" + origin.URL + "\"\n[host.\"" + mirror.URL + "\"]\ncapabilities = [\"pull\"]\n"
	if err := os.WriteFile(filepath.Join(dir, "hosts.toml"), []byte(toml), 0o644); err != nil {
		t.Fatal(err)
	}
	b := newBlob(t, origin, data, Options{HostsDirs: []string{hosts}})
	p := make([]byte, 10)
	if err := b.ReadAt(t.Context(), p, 0); err != nil {
		t.Fatalf("mirror without the blob: %v", err)
	}
	if len(mirror.Requests()) != 1 || len(origin.Requests()) != 1 {
		t.Errorf("mirror %q, origin %q", mirror.Requests(), origin.Requests())
	}
	mirror.AddBlob(data)
	origin.Close()
	if err := b.ReadAt(t.Context(), p, 0); err != nil {
		t.Fatalf("origin down: %v", err)
	}
}

func TestManifestAndReferrers(t *testing.T) {
	reg := registrytest.New(t)
	c, err := New(Options{PlainHTTP: true, Retry: quick})
	if err != nil {
		t.Fatal(err)
	}
	repo, tag, err := c.Repository(reg.Ref("v1"))
	if err != nil || tag != "v1" {
		t.Fatal(tag, err)
	}
	subject := reg.AddManifest("v1", []byte(`{"schemaVersion":2}`))
	desc, body, err := repo.Manifest(t.Context(), tag)
	if err != nil || desc.Digest != subject || len(body) == 0 {
		t.Fatal(desc, err)
	}
	if list, err := repo.Referrers(t.Context(), subject, "a/b"); err != nil || len(list) != 0 {
		t.Fatalf("no referrers: %v, %v", list, err)
	}
	want := v1.Descriptor{MediaType: v1.MediaTypeImageManifest, ArtifactType: "a/b", Digest: digest.FromString("x"), Size: 1}
	other := v1.Descriptor{MediaType: v1.MediaTypeImageManifest, ArtifactType: "c/d", Digest: digest.FromString("y"), Size: 1}
	index, err := json.Marshal(v1.Index{Versioned: specs.Versioned{SchemaVersion: 2}, Manifests: []v1.Descriptor{other, want}})
	if err != nil {
		t.Fatal(err)
	}
	check := func(name string) {
		t.Helper()
		list, err := repo.Referrers(t.Context(), subject, "a/b")
		if err != nil || len(list) != 1 || list[0].Digest != want.Digest {
			t.Errorf("%s: %v, %v", name, list, err)
		}
	}
	reg.AddManifest(strings.Replace(subject.String(), ":", "-", 1), index)
	check("tag")
	reg.AddReferrers(subject, index)
	check("API and tag")
	reg.AddManifest(subject.String(), []byte("forged"))
	if _, _, err := repo.Manifest(t.Context(), subject.String()); err == nil || !strings.Contains(err.Error(), "digest") {
		t.Errorf("a forged manifest: %v", err)
	}
}

func TestReaderEndsWithItsContext(t *testing.T) {
	reg := registrytest.New(t)
	b := newBlob(t, reg, content(1000), Options{Stall: time.Minute})
	reg.Fail(registrytest.Hang)
	r := b.Open(t.Context(), 0, 1000)
	done := make(chan error, 1)
	go func() {
		_, err := r.Read(make([]byte, 10))
		done <- err
	}()
	for len(reg.Requests()) == 0 {
		time.Sleep(time.Millisecond)
	}
	r.(*contentReader).cancel()
	if err := <-done; err == nil {
		t.Error("a cancelled read succeeded")
	}
	r.Close()
}
