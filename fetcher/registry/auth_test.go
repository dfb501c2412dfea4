package registry

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/lacuna-snapshotter/lacuna/fetcher/registry/registrytest"
)

// TestTokenServerFails has it fail in every way once. The next read must succeed:
// nothing of the failure is kept.
func TestTokenServerFails(t *testing.T) {
	for name, fault := range map[string]registrytest.Fault{
		"503":     registrytest.Status(http.StatusServiceUnavailable, ""),
		"429":     registrytest.Status(http.StatusTooManyRequests, "1"),
		"401":     registrytest.Status(http.StatusUnauthorized, ""),
		"404":     registrytest.Status(http.StatusNotFound, ""),
		"garbage": registrytest.Garbage,
	} {
		t.Run(name, func(t *testing.T) {
			reg := registrytest.New(t)
			reg.RequireToken("t")
			b := newBlob(t, reg, content(100), Options{})
			reg.FailTokens(fault)
			p := make([]byte, 10)
			_ = b.ReadAt(t.Context(), p, 0)
			if err := b.ReadAt(t.Context(), p, 0); err != nil {
				t.Fatalf("after one failure of the token server: %v", err)
			}
		})
	}
}

// TestTokenServerIsDown makes every token request fail, and looks at the error.
func TestTokenServerIsDown(t *testing.T) {
	reg := registrytest.New(t)
	reg.RequireToken("t")
	b := newBlob(t, reg, content(100), Options{})
	reg.FailTokens(repeat(registrytest.Status(http.StatusServiceUnavailable, ""), 4)...)
	err := b.ReadAt(t.Context(), make([]byte, 10), 0)
	var e *Error
	if !errors.As(err, &e) || e.Status != http.StatusServiceUnavailable || !strings.Contains(err.Error(), "token") {
		t.Fatal(err)
	}
	if n := reg.Tokens(); n != 4 {
		t.Errorf("%d token requests in four tries", n)
	}
}

// TestReaderEndsDuringTokenRequest ends the reader that a token is first asked for.
// Others wait for the same answer and get it.
func TestReaderEndsDuringTokenRequest(t *testing.T) {
	reg := registrytest.New(t)
	reg.RequireToken("t")
	b := newBlob(t, reg, content(100), Options{})
	gate := make(chan struct{})
	reg.FailTokens(registrytest.Until(gate))
	ctx, cancel := context.WithCancel(t.Context())
	first := make(chan error, 1)
	go func() { first <- b.ReadAt(ctx, make([]byte, 10), 0) }()
	for reg.Tokens() == 0 {
		time.Sleep(time.Millisecond)
	}
	var others sync.WaitGroup
	for range 3 {
		others.Go(func() {
			if err := b.ReadAt(t.Context(), make([]byte, 10), 0); err != nil {
				t.Error(err)
			}
		})
	}
	cancel()
	if err := <-first; err == nil {
		t.Error("a reader whose context has ended succeeded")
	}
	close(gate)
	others.Wait()
	if n := reg.Tokens(); n != 1 {
		t.Errorf("%d token requests", n)
	}
}

// TestTokenExpires has many readers with a token that the registry refuses from one
// moment on: they ask for one new token together.
func TestTokenExpires(t *testing.T) {
	reg := registrytest.New(t)
	reg.RequireToken("one")
	b := newBlob(t, reg, content(100), Options{})
	if err := b.ReadAt(t.Context(), make([]byte, 10), 0); err != nil {
		t.Fatal(err)
	}
	reg.RequireToken("two")
	var readers sync.WaitGroup
	for range 16 {
		readers.Go(func() {
			if err := b.ReadAt(t.Context(), make([]byte, 10), 0); err != nil {
				t.Error(err)
			}
		})
	}
	readers.Wait()
	if n := reg.Tokens(); n != 2 {
		t.Errorf("%d tokens, want 2", n)
	}
	// A token that is refused at once is asked for once more, not for ever.
	reg.FailTokens(func(w http.ResponseWriter, _ *http.Request, _ []byte) bool {
		_, _ = w.Write([]byte(`{"token":"wrong"}`))
		return true
	})
	reg.RequireToken("three")
	if err := b.ReadAt(t.Context(), make([]byte, 10), 0); !errors.Is(err, ErrUnauthorized) {
		t.Error(err)
	}
	if n := reg.Tokens(); n != 3 {
		t.Errorf("%d tokens, want 3", n)
	}
	if err := b.ReadAt(t.Context(), make([]byte, 10), 0); err != nil {
		t.Error(err)
	}
}

// TestTokenLife asks for a new token before the old one is refused.
func TestTokenLife(t *testing.T) {
	reg := registrytest.New(t)
	reg.RequireToken("t")
	reg.TokenLife(1)
	b := newBlob(t, reg, content(100), Options{})
	for range 2 {
		if err := b.ReadAt(t.Context(), make([]byte, 10), 0); err != nil {
			t.Fatal(err)
		}
		time.Sleep(1100 * time.Millisecond)
	}
	refused := 0
	for _, req := range reg.Requests() {
		if strings.Contains(req, "/blobs/") {
			refused++
		}
	}
	if n := reg.Tokens(); n != 2 || refused != 3 {
		t.Errorf("%d tokens, %d blob requests: %q", n, refused, reg.Requests())
	}
}

// TestCredentialsGoNowhereElse redirects the token request with its password.
func TestCredentialsGoNowhereElse(t *testing.T) {
	var leaked sync.Map
	thief := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		_ = req.ParseForm()
		for _, s := range []string{req.Header.Get("Authorization"), req.Form.Get("password"), req.Header.Get("X-Secret")} {
			if s != "" {
				leaked.Store(s, true)
			}
		}
		_, _ = w.Write([]byte(`{"token":"t"}`))
	}))
	defer thief.Close()
	reg := registrytest.New(t)
	reg.RequireToken("t")
	hosts := hostsTOML(t, reg, "[host.\""+reg.URL+"\"]\ncapabilities = [\"pull\"]\n[host.\""+reg.URL+"\".header]\nX-Secret = \"s\"\n")
	b := newBlob(t, reg, content(100), Options{DockerConfig: dockerConfig(t, reg.Host(), ""), HostsDirs: []string{hosts}})
	reg.FailTokens(repeat(registrytest.Redirect(thief.URL+"/token"), 9)...)
	if err := b.ReadAt(t.Context(), make([]byte, 10), 0); err == nil {
		t.Error("a token of another origin was used")
	}
	leaked.Range(func(k, _ any) bool {
		t.Errorf("another origin saw %q", k)
		return true
	})
}

// hostsTOML writes a hosts.toml for a registry and returns the directory.
func hostsTOML(t *testing.T, reg *registrytest.Registry, text string) string {
	t.Helper()
	root := t.TempDir()
	writeHosts(t, root, reg.Host(), "server = \""+reg.URL+"\"\n"+text)
	return root
}

func writeHosts(t *testing.T, root, registry, text string) {
	t.Helper()
	dir := filepath.Join(root, registry)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "hosts.toml"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// dockerConfig writes one with user "user", password "secret" for a host.
func dockerConfig(t *testing.T, host, more string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "config.json")
	if err := os.WriteFile(path, []byte(`{"auths":{"`+host+`":{"auth":"dXNlcjpzZWNyZXQ="}}`+more+`}`), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestRefusalTellsCredentials looks at what a refused reader is told.
func TestRefusalTellsCredentials(t *testing.T) {
	helpers := t.TempDir()
	t.Setenv("PATH", helpers+":"+os.Getenv("PATH"))
	helper := "#!/bin/sh\ncat >/dev/null\necho '{\"ServerURL\":\"x\",\"Username\":\"user\",\"Secret\":\"secret\"}'\n"
	if err := os.WriteFile(filepath.Join(helpers, "docker-credential-testing"), []byte(helper), 0o700); err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		opts func(reg *registrytest.Registry) Options
		want []string
	}{
		"none": {func(*registrytest.Registry) Options { return Options{} }, []string{"no credentials", "registry.docker_config"}},
		"no entry": {
			func(*registrytest.Registry) Options {
				return Options{DockerConfig: dockerConfig(t, "other.example", "")}
			},
			[]string{"no credentials", "config.json has none for 127.0.0.1"},
		},
		"entry": {
			func(reg *registrytest.Registry) Options {
				return Options{DockerConfig: dockerConfig(t, reg.Host(), "")}
			},
			[]string{"credentials for 127.0.0.1", "config.json"},
		},
		"helper": {
			func(reg *registrytest.Registry) Options {
				return Options{DockerConfig: dockerConfig(t, "other.example", `,"credHelpers":{"`+reg.Host()+`":"testing"}`)}
			},
			[]string{"docker-credential-testing"},
		},
		"header": {
			func(reg *registrytest.Registry) Options {
				return Options{HostsDirs: []string{hostsTOML(t, reg, "[host.\""+reg.URL+"\"]\ncapabilities = [\"pull\",\"resolve\"]\n[host.\""+reg.URL+"\".header]\nAuthorization = \"Basic secret\"\n")}}
			},
			[]string{"Authorization header of hosts.toml"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			reg := registrytest.New(t)
			reg.RequireToken("t")
			reg.FailTokens(repeat(registrytest.Status(http.StatusUnauthorized, ""), 20)...)
			b := newBlob(t, reg, content(100), tc.opts(reg)).Patient()
			err := b.ReadAt(t.Context(), make([]byte, 10), 0)
			if !errors.Is(err, ErrUnauthorized) {
				t.Fatal(err)
			}
			for _, want := range tc.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("%v: %q is missing", err, want)
				}
			}
			if strings.Contains(err.Error(), "secret") || strings.Contains(err.Error(), "dXNl") {
				t.Errorf("the error tells a secret: %v", err)
			}
		})
	}
}

// TestPrivateRepositoryIsNotWithoutIndex asks a registry that has no referrers API,
// and says so to everybody, for the referrers of a private image.
func TestPrivateRepositoryIsNotWithoutIndex(t *testing.T) {
	reg := registrytest.New(t)
	reg.RequireToken("t")
	reg.OpenAPI()
	reg.FailTokens(repeat(registrytest.Status(http.StatusUnauthorized, ""), 9)...)
	repo := newBlob(t, reg, content(1), Options{}).repo
	list, err := repo.Referrers(t.Context(), digest.FromString("image"), "a/b")
	if !errors.Is(err, ErrUnauthorized) {
		t.Errorf("%v, %v", list, err)
	}
}

// TestRenewedLogin mends the configuration of a running client.
func TestRenewedLogin(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if user, pass, _ := req.BasicAuth(); user != "user" || pass != "secret" {
			w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		registrytest.ServeRange(w, req, content(100))
	}))
	defer srv.Close()
	host := strings.TrimPrefix(srv.URL, "http://")
	path := dockerConfig(t, "other.example", "")
	c, err := New(Options{PlainHTTP: true, DockerConfig: path, Retry: quick})
	if err != nil {
		t.Fatal(err)
	}
	repo, _, err := c.Repository(host + "/a/b:c")
	if err != nil {
		t.Fatal(err)
	}
	b := repo.Content(v1.Descriptor{Digest: digest.FromBytes(content(100)), Size: 100})
	if err := b.ReadAt(t.Context(), make([]byte, 10), 5); !errors.Is(err, ErrUnauthorized) {
		t.Fatal(err)
	}
	if err := os.Rename(dockerConfig(t, host, ""), path); err != nil {
		t.Fatal(err)
	}
	if err := b.ReadAt(t.Context(), make([]byte, 10), 5); err != nil {
		t.Fatal(err)
	}
}
