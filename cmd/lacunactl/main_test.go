package main

import (
	"archive/tar"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/lacuna-snapshotter/lacuna/config"
	"github.com/lacuna-snapshotter/lacuna/fetcher/layertest"
	"github.com/lacuna-snapshotter/lacuna/fetcher/registry/registrytest"
	"github.com/lacuna-snapshotter/lacuna/internal/kernel"
)

// ran is what a run of the program gave.
type ran struct {
	status   int
	out, err string
}

// lacunactl runs the program with a store of its own.
func lacunactl(t *testing.T, store, in string, args ...string) ran {
	t.Helper()
	conf := filepath.Join(t.TempDir(), "config.toml")
	text := "[registry]\nattempts = 1\nhosts_dirs = []\ndocker_config = '/nonexistent/config.json'\n"
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if store != "" {
		args = append(args, "--store", store)
	}
	var out, errOut strings.Builder
	status := run(t.Context(), append(args, "--config", conf), strings.NewReader(in), &out, &errOut)
	return ran{status, out.String(), errOut.String()}
}

// image is one with layers of the given media types.
type image struct {
	blobs    map[digest.Digest][]byte
	manifest []byte
}

func makeImage(t *testing.T, kinds ...string) image {
	t.Helper()
	i := image{blobs: map[digest.Digest][]byte{}}
	add := func(media string, b []byte) v1.Descriptor {
		d := digest.FromBytes(b)
		i.blobs[d] = b
		return v1.Descriptor{MediaType: media, Digest: d, Size: int64(len(b))}
	}
	config := v1.Image{Platform: v1.Platform{OS: "linux", Architecture: "amd64"}}
	m := v1.Manifest{MediaType: v1.MediaTypeImageManifest, Layers: []v1.Descriptor{}}
	m.SchemaVersion = 2
	for n, kind := range kinds {
		plain := layertest.Tar(t, 10, uint64(n))
		b := plain
		if kind == v1.MediaTypeImageLayerGzip {
			b = layertest.Gzip(t, plain)
		}
		m.Layers = append(m.Layers, add(kind, b))
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, digest.FromBytes(plain))
	}
	m.Config = add(v1.MediaTypeImageConfig, mustJSON(t, config))
	i.manifest = mustJSON(t, m)
	return i
}

func mustJSON(t *testing.T, v any) []byte {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func (i image) serve(t *testing.T) *registrytest.Registry {
	reg := registrytest.New(t)
	for _, b := range i.blobs {
		reg.AddBlob(b)
	}
	reg.AddManifest("latest", i.manifest)
	return reg
}

func TestUnknownCommandsFail(t *testing.T) {
	for _, args := range [][]string{{"nonsense"}, {"index", "nonsense"}, {"index", "create"}} {
		if r := lacunactl(t, "", "", args...); r.status != exitFailed || r.err == "" || r.out != "" {
			t.Errorf("%q: %+v", args, r)
		}
	}
	if r := lacunactl(t, "", "", "index"); r.status != 0 || !strings.Contains(r.out, "create") {
		t.Errorf("help: %+v", r)
	}
}

func TestJSON(t *testing.T) {
	r := lacunactl(t, "", "", "index", "create", "python", "--json")
	var e struct{ Error string }
	if err := json.Unmarshal([]byte(r.err), &e); err != nil || r.status != exitFailed || !strings.Contains(e.Error, "docker.io/library/python") {
		t.Errorf("%+v: %v", r, err)
	}
	if r := lacunactl(t, t.TempDir(), "", "index", "list", "--json"); strings.TrimSpace(r.out) != "[]" {
		t.Errorf("an empty list: %+v", r)
	}
	var v struct{ Version string }
	if r := lacunactl(t, "", "", "version", "--json"); json.Unmarshal([]byte(r.out), &v) != nil || v.Version == "" {
		t.Errorf("version: %+v", r)
	}
}

// TestKernel needs no daemon. Without root most is not known.
func TestKernel(t *testing.T) {
	var r kernelReport
	if got := lacunactl(t, "", "", "kernel", "--json"); got.status != 0 || json.Unmarshal([]byte(got.out), &r) != nil {
		t.Fatalf("%+v", got)
	}
	if len(r.Features) != len(kernel.Features) || len(r.Transports) != len(kernel.Transports) || r.Kernel == "" {
		t.Errorf("%+v", r)
	}
	for _, f := range append(r.Features, r.Transports...) {
		if (f.State == "yes") != (f.Reason == "") {
			t.Errorf("%+v", f)
		}
	}
	if got := lacunactl(t, "", "", "kernel"); got.status != 0 || !strings.Contains(got.out, kernel.PreContent.Name) {
		t.Errorf("%+v", got)
	}
}

func TestImageThatCannotBeIndexed(t *testing.T) {
	for name, kinds := range map[string][]string{"zstd": {v1.MediaTypeImageLayerZstd}, "raw": {v1.MediaTypeImageLayer}, "layerless": nil} {
		reg := makeImage(t, kinds...).serve(t)
		r := lacunactl(t, t.TempDir(), "", "index", "create", "--push", "--plain-http", reg.Ref("latest"))
		if r.status != exitFailed || !strings.Contains(r.err, "no layer has an index") {
			t.Errorf("%s: %+v", name, r)
		}
		for _, request := range reg.Requests() {
			if strings.HasPrefix(request, http.MethodPost) || strings.HasPrefix(request, http.MethodPut) {
				t.Errorf("%s: the registry was sent %s", name, request)
			}
		}
	}
}

func TestPartial(t *testing.T) {
	reg := makeImage(t, v1.MediaTypeImageLayerGzip, v1.MediaTypeImageLayerZstd, v1.MediaTypeImageLayerGzip).serve(t)
	store := t.TempDir()
	r := lacunactl(t, store, "", "index", "create", "--plain-http", reg.Ref("latest"))
	if r.status != exitPartial || !strings.Contains(r.err, "1 of 3") || !strings.Contains(r.out, "tar+zstd") || !strings.Contains(r.out, "index: ") {
		t.Errorf("%+v", r)
	}
	// What is there can be seen, and removed.
	var list []stored
	if r := lacunactl(t, store, "", "index", "list", "--json"); json.Unmarshal([]byte(r.out), &list) != nil || len(list) != 2 || len(list[0].Images) != 1 {
		t.Fatalf("%+v", r)
	}
	if r := lacunactl(t, store, "", "index", "rm", "abcdefabcdef"); r.status != exitFailed {
		t.Errorf("%+v", r)
	}
	if r := lacunactl(t, store, "", "index", "rm", list[0].Layer.Encoded()[:12]); r.status != 0 {
		t.Errorf("%+v", r)
	}
	if r := lacunactl(t, store, "", "index", "rm", list[0].Images[0]); r.status != 0 || !strings.Contains(r.out, list[1].Layer.String()) {
		t.Errorf("%+v", r)
	}
	if left, err := os.ReadDir(store); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}

func TestInspectWithoutIndexFails(t *testing.T) {
	reg := makeImage(t, v1.MediaTypeImageLayerGzip).serve(t)
	store := t.TempDir()
	if r := lacunactl(t, store, "", "index", "inspect", "--plain-http", reg.Ref("latest")); r.status != exitFailed || !strings.Contains(r.err, "index create") {
		t.Errorf("%+v", r)
	}
	for _, what := range []string{"create", "inspect"} {
		if r := lacunactl(t, store, "", "index", what, "--plain-http", reg.Ref("latest")); r.status != 0 {
			t.Errorf("%s: %+v", what, r)
		}
	}
}

// TestUser logs in with --user, the password from the input.
func TestUser(t *testing.T) {
	reg := makeImage(t, v1.MediaTypeImageLayerGzip).serve(t)
	front := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if user, password, ok := r.BasicAuth(); !ok || user != "ann" || password != "se:cret" {
			w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		reg.Config.Handler.ServeHTTP(w, r)
	}))
	defer front.Close()
	ref := strings.TrimPrefix(front.URL, "http://") + "/test/image:latest"
	if r := lacunactl(t, t.TempDir(), "", "index", "create", "--plain-http", ref); r.status != exitFailed || !strings.Contains(r.err, "--user") {
		t.Errorf("without: %+v", r)
	}
	if r := lacunactl(t, t.TempDir(), "se:cret\n", "index", "create", "--plain-http", "--user", "ann", ref); r.status != 0 {
		t.Errorf("with: %+v", r)
	}
	if r := lacunactl(t, t.TempDir(), "", "index", "create", "--plain-http", "--user", "ann", ref); r.status != exitFailed || !strings.Contains(r.err, "password") {
		t.Errorf("without a password: %+v", r)
	}
	// Docker's own file does as well.
	docker := filepath.Join(t.TempDir(), "config.json")
	if err := os.WriteFile(docker, []byte(`{"auths":{"`+strings.TrimPrefix(front.URL, "http://")+`":{"auth":"YW5uOnNlOmNyZXQ="}}}`), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, given := range []string{docker, filepath.Dir(docker)} {
		if r := lacunactl(t, t.TempDir(), "", "index", "create", "--plain-http", "--docker-config", given, ref); r.status != 0 {
			t.Errorf("with %s: %+v", given, r)
		}
	}
}

// TestWhoseCredentials are read, and where indexes go.
func TestWhoseCredentials(t *testing.T) {
	c := &config.Config{Root: "/var/lib/x"}
	c.Registry.DockerConfig = "/root/.docker/config.json"
	home := t.TempDir()
	t.Setenv("HOME", home)
	t.Setenv("XDG_CACHE_HOME", filepath.Join(home, "cache"))
	for _, tc := range []struct {
		euid      int
		env, want string
	}{
		{0, "", "/root/.docker/config.json"},
		{0, "/d", "/d/config.json"},
		{1000, "/d", "/d/config.json"},
		{1000, "", filepath.Join(home, ".docker/config.json")},
	} {
		t.Setenv("DOCKER_CONFIG", tc.env)
		x := &indexSettings{settings: &settings{}, euid: tc.euid}
		if got, err := x.dockerConfig(c); err != nil || got != tc.want {
			t.Errorf("user %d, DOCKER_CONFIG %q: %s, %v, want %s", tc.euid, tc.env, got, err, tc.want)
		}
	}
	x := &indexSettings{settings: &settings{}, euid: 1000}
	if _, err := x.store(c); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(home, "cache/lacuna/index")); err != nil {
		t.Error(err)
	}
	x.docker = "/nonexistent"
	if _, err := x.dockerConfig(c); err == nil {
		t.Error("a file that is not there was taken")
	}
}

func TestPlainHTTPHint(t *testing.T) {
	err := errors.New("http: server gave HTTP response to HTTPS client") // net/http, transport.go
	if !strings.Contains(hint(err), "--plain-http") {
		t.Error(hint(err))
	}
}

// layout writes an image as an OCI layout.
func (i image) layout(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	put := func(name string, b []byte) {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for d, b := range i.blobs {
		put("blobs/sha256/"+d.Encoded(), b)
	}
	d := digest.FromBytes(i.manifest)
	put("blobs/sha256/"+d.Encoded(), i.manifest)
	put("oci-layout", []byte(`{"imageLayoutVersion":"1.0.0"}`))
	list := v1.Index{Manifests: []v1.Descriptor{{MediaType: v1.MediaTypeImageManifest, Digest: d, Size: int64(len(i.manifest)), Annotations: map[string]string{v1.AnnotationRefName: "1.0"}}}}
	list.SchemaVersion = 2
	put("index.json", mustJSON(t, list))
	return dir
}

func TestLayout(t *testing.T) {
	i := makeImage(t, v1.MediaTypeImageLayerGzip, v1.MediaTypeImageLayerGzip)
	dir := i.layout(t)
	archive := filepath.Join(t.TempDir(), "image.tar")
	f, err := os.Create(archive)
	if err != nil {
		t.Fatal(err)
	}
	w := tar.NewWriter(f)
	if err := w.AddFS(os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	f.Close()
	fromRegistry, want := i.serve(t), t.TempDir()
	if r := lacunactl(t, want, "", "index", "create", "--plain-http", fromRegistry.Ref("latest")); r.status != 0 {
		t.Fatal(r)
	}
	for _, where := range []string{dir, archive} {
		store := t.TempDir()
		if r := lacunactl(t, store, "", "index", "create", "--oci-layout", where, "registry.invalid/app:1.0"); r.status != 0 {
			t.Errorf("%s: %+v", where, r)
		}
		same(t, want, store)
	}
	for bad, says := range map[string]string{"/dev/null": "no OCI layout", t.TempDir(): "no OCI layout", os.Args[0]: "tar of an OCI layout", "/nonexistent": "no such file"} {
		if r := lacunactl(t, t.TempDir(), "", "index", "create", "--oci-layout", bad, "registry.invalid/app:1.0"); r.status != exitFailed || !strings.Contains(r.err, says) {
			t.Errorf("%s: %+v", bad, r)
		}
	}
}

// same fails the test unless two directories have the same files.
func same(t *testing.T, want, got string) {
	t.Helper()
	entries, err := os.ReadDir(want)
	if err != nil || len(entries) < 3 {
		t.Fatal(entries, err)
	}
	for _, e := range entries {
		a, err := os.ReadFile(filepath.Join(want, e.Name()))
		b, otherErr := os.ReadFile(filepath.Join(got, e.Name()))
		if err != nil || otherErr != nil || string(a) != string(b) {
			t.Errorf("%s differs: %v, %v", e.Name(), err, otherErr)
		}
	}
}
