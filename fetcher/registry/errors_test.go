package registry

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/lacuna-snapshotter/lacuna/fetcher/registry/registrytest"
)

// TestMistakesAreNotOutages has patient readers of registries that are asked in the
// wrong way. Waiting mends none of it.
func TestMistakesAreNotOutages(t *testing.T) {
	plain, secure := registrytest.New(t), registrytest.NewTLS(t)
	for name, tc := range map[string]struct {
		reg    *registrytest.Registry
		server string
		want   string
	}{
		"HTTPS of a server of HTTP":    {plain, "https://" + plain.Host(), "HTTP response to HTTPS client"},
		"HTTP of a server of HTTPS":    {secure, "http://" + secure.Host(), "HTTPS"},
		"a certificate nobody trusts":  {secure, "https://" + secure.Host(), "certificate"},
		"a certificate of other names": {secure, "https://localhost:" + strings.Split(secure.Host(), ":")[1], "certificate"},
	} {
		t.Run(name, func(t *testing.T) {
			ca := filepath.Join(t.TempDir(), "ca.pem")
			secure.CA(ca)
			more := ""
			if strings.Contains(name, "names") {
				more = fmt.Sprintf("ca = %q\n", ca)
			}
			hosts := hostsTOML(t, tc.reg, "")
			writeHosts(t, hosts, tc.reg.Host(), "server = \""+tc.server+"\"\n"+more)
			data := content(100)
			b := newBlob(t, tc.reg, data, Options{HostsDirs: []string{hosts}}).Patient()
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second) // of a hang
			defer cancel()
			err := b.ReadAt(ctx, make([]byte, 10), 0)
			if ctx.Err() != nil {
				t.Fatal("tried again like an outage")
			}
			if !errors.Is(err, ErrMisconfigured) || !strings.Contains(err.Error(), tc.want) {
				t.Fatal(err)
			}
			if err := b.repo.client.Probe(ctx, tc.reg.Ref("1"), b.desc.Digest, 100); !errors.Is(err, ErrMisconfigured) {
				t.Errorf("probe: %v", err)
			}
		})
	}
}

// TestMistakesOfWhatHasWorked takes the same failures of a host that has answered
// before for an outage: the configuration was right.
func TestMistakesOfWhatHasWorked(t *testing.T) {
	reg := registrytest.New(t)
	b := newBlob(t, reg, content(10), Options{})
	set, err := b.repo.client.hostsOf(b.repo.registry)
	if err != nil {
		t.Fatal(err)
	}
	h := set.hosts[0]
	nxdomain := &net.DNSError{Err: "no such host", Name: "registry.example", IsNotFound: true}
	for cause, class := range map[error]retryClass{
		nxdomain:                       retryFew,
		x509.UnknownAuthorityError{}:   retryNever,
		http.ErrSchemeMismatch:         retryNever,
		errors.New("connection reset"): retryOn,
	} {
		for _, worked := range []bool{false, true} {
			b.repo.client.health = health{}
			if worked {
				b.repo.client.health.hear(h.key)
				class = retryOn
			}
			e := b.repo.judge(call{}, h, &Error{Err: fmt.Errorf("get: %w", cause)})
			if classOf(e) != class || e.Is(ErrMisconfigured) != (class != retryOn) {
				t.Errorf("%v, worked before %v: retry %d, misconfigured %v", cause, worked, classOf(e), e.misconfigured)
			}
		}
	}
	timeout := &net.DNSError{Err: "i/o timeout", Name: "registry.example", IsTimeout: true}
	if e := b.repo.judge(call{}, h, &Error{Err: timeout}); classOf(e) != retryOn {
		t.Error("a name server that does not answer is a mistake")
	}
}

// TestMirrorDoesNotHideTheOrigin has a mirror fail in ways that come and go, and an
// origin that refuses for good: patience has an end.
func TestMirrorDoesNotHideTheOrigin(t *testing.T) {
	for status, want := range map[int]error{http.StatusUnauthorized: ErrUnauthorized, http.StatusNotFound: ErrNotFound} {
		b, origin, mirror := newMirrored(t, content(10), Options{})
		b.Patient()
		mirror.Close()
		origin.Fail(repeat(registrytest.Status(status, ""), 50)...)
		err := b.ReadAt(t.Context(), make([]byte, 5), 0)
		if !errors.Is(err, want) || !strings.Contains(err.Error(), mirror.Host()) {
			t.Error(err)
		}
	}
	b, origin, mirror := newMirrored(t, content(10), Options{})
	mirror.Fail(repeat(registrytest.Status(http.StatusNotFound, ""), 3)...)
	origin.Fail(repeat(registrytest.Status(http.StatusServiceUnavailable, ""), 2)...)
	if err := b.ReadAt(t.Context(), make([]byte, 5), 0); err != nil {
		t.Errorf("the origin's outage was not waited for: %v", err)
	}
}

// TestMendedConfiguration is seen without a restart.
func TestMendedConfiguration(t *testing.T) {
	reg := registrytest.New(t)
	hosts := hostsTOML(t, reg, "")
	writeHosts(t, hosts, reg.Host(), "server = \"https://"+reg.Host()+"\"\n")
	b := newBlob(t, reg, content(10), Options{HostsDirs: []string{hosts}})
	if err := b.ReadAt(t.Context(), make([]byte, 5), 0); !errors.Is(err, ErrMisconfigured) {
		t.Fatal(err)
	}
	writeHosts(t, hosts, reg.Host(), "server = \""+reg.URL+"\"\n")
	b.repo.client.hosts[b.repo.registry].loaded = time.Now().Add(-reloadMistake)
	_ = b.ReadAt(t.Context(), make([]byte, 5), 0) // fails, and has the file read again
	if err := b.ReadAt(t.Context(), make([]byte, 5), 0); err != nil {
		t.Error(err)
	}
}

// TestProbe looks at each answer a probe can have.
func TestProbe(t *testing.T) {
	data := content(1000)
	for name, tc := range map[string]struct {
		prepare func(reg *registrytest.Registry)
		size    int64
		want    error // nil means success
		missing bool
	}{
		"there":          {size: 1000},
		"size not known": {},
		"token":          {prepare: func(reg *registrytest.Registry) { reg.RequireToken("t") }, size: 1000},
		"redirect":       {prepare: func(reg *registrytest.Registry) { reg.Fail(redirectTo(reg)) }, size: 1000},
		"another size":   {size: 999, want: ErrRange},
		"missing":        {want: ErrNotFound, missing: true},
		"refused": {prepare: func(reg *registrytest.Registry) {
			reg.RequireToken("t")
			reg.FailTokens(repeat(registrytest.Status(http.StatusForbidden, ""), 9)...)
		}, want: ErrUnauthorized},
		"a short outage": {prepare: func(reg *registrytest.Registry) { reg.Fail(registrytest.Status(503, "")) }},
	} {
		t.Run(name, func(t *testing.T) {
			reg := registrytest.New(t)
			d := digest.FromBytes(data)
			if !tc.missing {
				reg.AddBlob(data)
			}
			if tc.prepare != nil {
				tc.prepare(reg)
			}
			c, err := New(Options{PlainHTTP: true, Retry: quick})
			if err != nil {
				t.Fatal(err)
			}
			err = c.Probe(t.Context(), reg.Ref("v1"), d, tc.size)
			var e *Error
			if tc.want == nil && err != nil || tc.want != nil && (!errors.Is(err, tc.want) || !errors.As(err, &e)) {
				t.Errorf("got %v, want %v", err, tc.want)
			}
			if n := c.BytesRead(); n > 1 {
				t.Errorf("a probe read %d bytes", n)
			}
		})
	}
}

// redirectTo sends a request to the same registry's own blobs with a query, as to a store.
func redirectTo(reg *registrytest.Registry) registrytest.Fault {
	return func(w http.ResponseWriter, req *http.Request, _ []byte) bool {
		http.Redirect(w, req, reg.URL+req.URL.Path+"?signature=x", http.StatusTemporaryRedirect)
		return true
	}
}

// TestProbesShareRefusals asks for the layers of one image: what is said of the
// repository is not asked again for each, what is said of a layer is.
func TestProbesShareRefusals(t *testing.T) {
	reg := registrytest.New(t)
	c, err := New(Options{PlainHTTP: true, Retry: quick})
	if err != nil {
		t.Fatal(err)
	}
	there, missing := reg.AddBlob(content(10)), digest.FromString("missing")
	for range 2 {
		if err := c.Probe(t.Context(), reg.Ref("1"), missing, 0); !NotFound(err) {
			t.Error(err)
		}
		if err := c.Probe(t.Context(), reg.Ref("1"), there, 0); err != nil {
			t.Error(err)
		}
	}
	if n := len(reg.Requests()); n != 4 {
		t.Errorf("%d requests for four probes", n)
	}
	reg.RequireToken("t")
	reg.FailTokens(repeat(registrytest.Status(http.StatusUnauthorized, ""), 99)...)
	if err := c.Probe(t.Context(), reg.Ref("1"), there, 0); !errors.Is(err, ErrUnauthorized) {
		t.Error(err)
	}
	before := len(reg.Requests())
	for i := range 10 {
		if err := c.Probe(t.Context(), reg.Ref("1"), digest.FromString(fmt.Sprint(i)), 0); !errors.Is(err, ErrUnauthorized) {
			t.Error(err)
		}
	}
	if n := len(reg.Requests()) - before; n != 0 {
		t.Errorf("%d requests after a refusal", n)
	}
	if err := c.Probe(t.Context(), reg.Host()+"/another/image:1", there, 0); !errors.Is(err, ErrUnauthorized) || len(reg.Requests()) == before {
		t.Error("another repository shares the answer")
	}
}
