package registry

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/lacuna-snapshotter/lacuna/fetcher/registry/registrytest"
)

// newMirrored is a blob of an origin with a mirror before it.
func newMirrored(t *testing.T, data []byte, opts Options) (b *Content, origin, mirror *registrytest.Registry) {
	t.Helper()
	origin, mirror = registrytest.New(t), registrytest.New(t)
	mirror.AddBlob(data)
	opts.HostsDirs = []string{hostsTOML(t, origin, "[host.\""+mirror.URL+"\"]\ncapabilities = [\"pull\"]\n")}
	return newBlob(t, origin, data, opts), origin, mirror
}

// TestNamespace tells mirrors which registry is meant, as containerd does: also those
// on this host, and those of Docker Hub.
func TestNamespace(t *testing.T) {
	mirror := registrytest.New(t)
	data := content(100)
	d := mirror.AddBlob(data)
	for _, registry := range []string{"docker.io", "registry.example:5000"} {
		root := t.TempDir()
		writeHosts(t, root, registry, "server = \"http://127.0.0.1:1\"\n[host.\""+mirror.URL+"\"]\ncapabilities = [\"pull\"]\n")
		c, err := New(Options{HostsDirs: []string{root}, Retry: quick})
		if err != nil {
			t.Fatal(err)
		}
		repo, _, err := c.Repository(registry + "/test/image:1")
		if err != nil {
			t.Fatal(err)
		}
		if err := repo.Content(v1.Descriptor{Digest: d, Size: 100}).ReadAt(t.Context(), make([]byte, 10), 0); err != nil {
			t.Fatal(err)
		}
		q, err := url.ParseQuery(mirror.Queries()[len(mirror.Queries())-1])
		if err != nil || q.Get("ns") != registry {
			t.Errorf("mirror of %s was asked with %v", registry, q)
		}
	}
	origin := registrytest.New(t)
	if err := newBlob(t, origin, data, Options{}).ReadAt(t.Context(), make([]byte, 10), 0); err != nil {
		t.Fatal(err)
	}
	if q := origin.Queries(); q[0] != "" {
		t.Errorf("the registry itself was asked with %q", q)
	}
}

// TestDeadMirror has a mirror that swallows requests: not every read waits for it,
// and when the origin has gone it is asked after all.
func TestDeadMirror(t *testing.T) {
	data := content(1000)
	b, origin, mirror := newMirrored(t, data, Options{Stall: 200 * time.Millisecond})
	const reads = 8
	mirror.Fail(repeat(registrytest.Silent, reads)...)
	p := make([]byte, 10)
	for range reads {
		if err := b.ReadAt(t.Context(), p, 0); err != nil {
			t.Fatal(err)
		}
	}
	if n := len(mirror.Requests()); n > reads/2 {
		t.Errorf("%d of %d reads waited for a dead mirror", n, reads)
	}
	mirror.ClearFaults()
	origin.Close()
	if err := b.ReadAt(t.Context(), p, 0); err != nil {
		t.Errorf("the mirror is well and the origin has gone: %v", err)
	}
}

// TestRangesFromTheNextHost has mirrors that do not answer what was asked.
func TestRangesFromTheNextHost(t *testing.T) {
	data := content(100000)
	for name, fault := range map[string]registrytest.Fault{"other range": registrytest.OtherRange, "whole": registrytest.Whole} {
		b, origin, mirror := newMirrored(t, data, Options{})
		mirror.Fail(fault, fault)
		p := make([]byte, 1000)
		if err := b.ReadAt(t.Context(), p, 5000); err != nil || !bytes.Equal(p, data[5000:6000]) {
			t.Errorf("%s: %v, or wrong bytes", name, err)
		}
		if len(origin.Requests()) != 1 {
			t.Errorf("%s: origin was asked %q", name, origin.Requests())
		}
		if name == "whole" {
			origin.Close()
			if err := b.ReadAt(t.Context(), p, 5000); err != nil || !bytes.Equal(p, data[5000:6000]) {
				t.Errorf("%s, and no other host: %v, or wrong bytes", name, err)
			}
		}
	}
}

// TestWrongBytesFromTheNextHost verifies what is read. Nothing unverified is returned.
func TestWrongBytesFromTheNextHost(t *testing.T) {
	data := content(5000)
	b, origin, mirror := newMirrored(t, data, Options{})
	p := make([]byte, 1000)
	want := sha256.Sum256(data[100:1100])
	verify := func(p []byte) error {
		if sha256.Sum256(p) != want {
			return errors.New("another digest")
		}
		return nil
	}
	mirror.Fail(registrytest.Flip)
	if err := b.ReadVerified(t.Context(), p, 100, verify); err != nil || !bytes.Equal(p, data[100:1100]) {
		t.Fatalf("%v, or wrong bytes", err)
	}
	if trouble := b.repo.client.Troubles(); len(trouble) != 0 {
		t.Errorf("the origin has given the bytes: %+v", trouble)
	}
	before := len(mirror.Requests())
	if err := b.ReadVerified(t.Context(), p, 100, verify); err != nil || len(mirror.Requests()) != before {
		t.Errorf("%v, or the mirror was asked first again", err)
	}
	// All of them lie.
	b = b.repo.Content(b.desc)
	mirror.Fail(registrytest.Flip)
	origin.Fail(registrytest.Flip)
	err := b.ReadVerified(t.Context(), p, 100, verify)
	var bad *BadBytesError
	if !errors.As(err, &bad) || len(bad.Hosts) != 2 || !strings.Contains(err.Error(), mirror.Host()) || !strings.Contains(err.Error(), origin.Host()) {
		t.Errorf("all hosts give wrong bytes: %v", err)
	}
	if trouble := b.repo.client.Troubles(); len(trouble) != 1 || !strings.Contains(trouble[0].Error, "wrong bytes") {
		t.Errorf("%+v", trouble)
	}
	// They are all asked again, the one that was not asked for the longest time first.
	// One that goes on lying does not keep readers from the others.
	before = len(mirror.Requests())
	mirror.Fail(repeat(registrytest.Flip, 9)...)
	b.distrusted.add(b.repo.client.hosts[b.repo.registry].hosts[0].key)
	if err := b.ReadVerified(t.Context(), p, 100, verify); err != nil || len(mirror.Requests()) != before {
		t.Errorf("%v, or the liar was asked first", err)
	}
	mirror.ClearFaults()
	if err := b.ReadVerified(t.Context(), p, 100, verify); err != nil {
		t.Error(err)
	}
}

func TestManifestFromTheNextHost(t *testing.T) {
	b, origin, mirror := newMirrored(t, content(10), Options{})
	d := origin.AddManifest("v1", []byte(`{"schemaVersion":2}`))
	mirror.AddManifest("v1", []byte(`{"schemaVersion":2}`))
	mirror.AddManifest(d.String(), []byte("forged"))
	if _, body, err := b.repo.Manifest(t.Context(), d.String()); err != nil || string(body) != `{"schemaVersion":2}` {
		t.Errorf("%s, %v", body, err)
	}
}

// TestRedirectOfOneHost has a mirror with a certificate of its own redirect to a store
// with the same: the remembered target is asked as the mirror would, with nothing that
// is the mirror's alone.
func TestRedirectOfOneHost(t *testing.T) {
	data := content(9000)
	var leaked atomic.Value
	store := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if s := req.Header.Get("X-Secret") + req.Header.Get("Authorization"); s != "" {
			leaked.Store(s)
		}
		registrytest.ServeRange(w, req, data)
	}))
	defer store.Close()
	origin, mirror := registrytest.New(t), registrytest.NewTLS(t)
	mirror.AddBlob(data)
	ca := filepath.Join(t.TempDir(), "ca.pem")
	mirror.CA(ca)
	mirror.Fail(repeat(registrytest.Redirect(store.URL+"/object?signature=hunter2"), 9)...)
	hosts := hostsTOML(t, origin, fmt.Sprintf("[host.%q]\ncapabilities = [\"pull\"]\nca = %q\n[host.%q.header]\nX-Secret = \"s\"\n", mirror.URL, ca, mirror.URL))
	b := newBlob(t, origin, data, Options{HostsDirs: []string{hosts}})
	p := make([]byte, 10)
	for range 4 {
		if err := b.ReadAt(t.Context(), p, 7); err != nil || !bytes.Equal(p, data[7:17]) {
			t.Fatal(err)
		}
	}
	if n := len(mirror.Requests()); n != 1 {
		t.Errorf("the mirror was asked %d times for four reads of one target", n)
	}
	if v := leaked.Load(); v != nil {
		t.Errorf("the store saw %q", v)
	}
}

func TestReferrersPages(t *testing.T) {
	reg := registrytest.New(t)
	subject := digest.FromString("image")
	page := func(names ...string) []byte {
		index := v1.Index{Versioned: specs.Versioned{SchemaVersion: 2}}
		for _, name := range names {
			index.Manifests = append(index.Manifests, v1.Descriptor{ArtifactType: "a/b", Digest: digest.FromString(name), Size: 1})
		}
		b, err := json.Marshal(index)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	reg.AddPages(subject, page("1", "2"), page("3"), page("4"))
	repo := newBlob(t, reg, content(1), Options{}).repo
	list, err := repo.Referrers(t.Context(), subject, "a/b")
	if err != nil || len(list) != 4 || list[3].Digest != digest.FromString("4") {
		t.Errorf("%v, %v", list, err)
	}
	if ok, err := repo.ListsReferrer(t.Context(), subject, digest.FromString("4")); !ok || err != nil {
		t.Error(ok, err)
	}
	pages := make([][]byte, maxPages+1)
	for i := range pages {
		pages[i] = page()
	}
	endless := digest.FromString("another image")
	reg.AddPages(endless, pages...)
	if list, err := repo.Referrers(t.Context(), endless, "a/b"); err == nil {
		t.Errorf("pages without end: %v, %v", list, err)
	}
	if n := len(reg.Requests()); n > 2*maxPages {
		t.Errorf("%d requests", n)
	}
}

// TestSlowStream has one stream of an HTTP/2 connection stall while others flow. It
// is given up and read again, over the same connection, and its host is not avoided.
func TestSlowStream(t *testing.T) {
	data := content(100000)
	origin, mirror := registrytest.New(t), registrytest.NewTLS(t)
	mirror.AddBlob(data)
	ca := filepath.Join(t.TempDir(), "ca.pem")
	mirror.CA(ca)
	hosts := hostsTOML(t, origin, fmt.Sprintf("[host.%q]\ncapabilities = [\"pull\"]\nca = %q\n", mirror.URL, ca))
	b := newBlob(t, origin, data, Options{HostsDirs: []string{hosts}, Stall: 2 * time.Second})
	var proto atomic.Int32
	var conns sync.Map // by the client's address
	note := func(_ http.ResponseWriter, req *http.Request, _ []byte) bool {
		proto.Store(int32(req.ProtoMajor))
		conns.Store(req.RemoteAddr, true)
		return false
	}
	mirror.Fail(note, registrytest.Hang)
	mirror.Fail(repeat(note, 5000)...)
	if err := b.ReadAt(t.Context(), make([]byte, 10), 0); err != nil {
		t.Fatal(err)
	}
	if proto.Load() != 2 {
		t.Fatalf("HTTP/%d", proto.Load())
	}
	slow := make(chan error, 1)
	go func() { slow <- b.ReadAt(t.Context(), make([]byte, 10), 0) }()
	for len(mirror.Requests()) < 2 {
		time.Sleep(time.Millisecond)
	}
	for done := false; !done; {
		select {
		case err := <-slow:
			if err != nil {
				t.Fatal(err)
			}
			done = true
		default:
			if err := b.ReadAt(t.Context(), make([]byte, 10), 0); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Millisecond)
		}
	}
	if n := len(origin.Requests()); n != 0 {
		t.Errorf("the mirror was taken for dead: origin was asked %d times", n)
	}
	n := 0
	conns.Range(func(any, any) bool { n++; return true })
	if n != 1 {
		t.Errorf("%d connections", n)
	}
}

// TestManyStreams asks for more at once than one HTTP/2 connection of the test's
// registry carries.
func TestManyStreams(t *testing.T) {
	data := content(100000)
	reg := registrytest.NewTLS(t)
	ca := filepath.Join(t.TempDir(), "ca.pem")
	reg.CA(ca)
	hosts := hostsTOML(t, reg, fmt.Sprintf("ca = %q\n", ca))
	b := newBlob(t, reg, data, Options{HostsDirs: []string{hosts}, Connections: 4})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	errs := make(chan error, 40)
	for i := range cap(errs) {
		go func() {
			p := make([]byte, 1000)
			err := b.ReadAt(ctx, p, int64(i))
			if err == nil && !bytes.Equal(p, data[i:i+1000]) {
				err = errors.New("wrong bytes")
			}
			errs <- err
		}()
	}
	for range cap(errs) {
		if err := <-errs; err != nil {
			t.Fatal(err)
		}
	}
}

// TestLocalhost has a registry on this host with a port and no configuration: it is
// asked with HTTPS first, and found to speak HTTP.
func TestLocalhost(t *testing.T) {
	data := content(1000)
	reg := registrytest.New(t)
	d := reg.AddBlob(data)
	reg.RequireToken("t")
	c, err := New(Options{Retry: quick})
	if err != nil {
		t.Fatal(err)
	}
	repo, _, err := c.Repository(reg.Ref("1"))
	if err != nil {
		t.Fatal(err)
	}
	reg.Fail(registrytest.Redirect("/v2/test/image/blobs/" + d.String()))
	p := make([]byte, 10)
	if err := repo.Content(v1.Descriptor{Digest: d, Size: 1000}).ReadAt(t.Context(), p, 7); err != nil || !bytes.Equal(p, data[7:17]) {
		t.Error(err)
	}
}
