package index

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/lacuna-snapshotter/lacuna/fetcher/layertest"
	"github.com/lacuna-snapshotter/lacuna/fetcher/registry"
	"github.com/lacuna-snapshotter/lacuna/fetcher/registry/registrytest"
	"github.com/lacuna-snapshotter/lacuna/fetcher/spans"
)

// testLayer is a layer as it is in a registry, with the diff ID that an image says.
type testLayer struct {
	media  string
	packed []byte
	diffID digest.Digest
}

func gzipLayer(t *testing.T, tar []byte) testLayer {
	t.Helper()
	return testLayer{v1.MediaTypeImageLayerGzip, layertest.Gzip(t, tar), digest.FromBytes(tar)}
}

// addImage puts an image into a registry under a tag.
func addImage(t *testing.T, reg *registrytest.Registry, tag, arch string, layers ...testLayer) v1.Descriptor {
	t.Helper()
	config := v1.Image{Platform: v1.Platform{OS: "linux", Architecture: arch}}
	m := v1.Manifest{MediaType: v1.MediaTypeImageManifest, Layers: []v1.Descriptor{}}
	m.SchemaVersion = 2
	for _, l := range layers {
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, l.diffID)
		m.Layers = append(m.Layers, v1.Descriptor{MediaType: l.media, Digest: reg.AddBlob(l.packed), Size: int64(len(l.packed))})
	}
	c, err := json.Marshal(config)
	if err != nil {
		t.Fatal(err)
	}
	m.Config = v1.Descriptor{MediaType: v1.MediaTypeImageConfig, Digest: reg.AddBlob(c), Size: int64(len(c))}
	body, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return v1.Descriptor{
		MediaType: m.MediaType, Digest: reg.AddManifest(tag, body), Size: int64(len(body)), Platform: &config.Platform,
	}
}

func testClient(t *testing.T) *registry.Client {
	t.Helper()
	client, err := registry.New(registry.Options{PlainHTTP: true, Retry: registry.Retry{Attempts: 2, Base: time.Millisecond}})
	if err != nil {
		t.Fatal(err)
	}
	return client
}

func resolve(t *testing.T, ref string) *Image {
	t.Helper()
	images, err := ResolveImages(t.Context(), testClient(t), nil, ref, nil)
	if err != nil {
		t.Fatal(err)
	}
	return images[0]
}

func testStore(t *testing.T) *Store {
	t.Helper()
	s, err := OpenStore(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// noIndex fails the test where a store has an index that could be used or pushed.
func noIndex(t *testing.T, s *Store) {
	t.Helper()
	if list, err := s.Layers(); err != nil || len(list) > 0 {
		t.Errorf("the store has indexes: %v, %v", list, err)
	}
}

func TestNothingToIndexIsAnError(t *testing.T) {
	for name, layers := range map[string][]testLayer{
		"zstd":      {{v1.MediaTypeImageLayerZstd, []byte("z"), digest.FromString("z")}},
		"raw tar":   {{v1.MediaTypeImageLayer, []byte("t"), digest.FromString("t")}},
		"no layers": nil,
	} {
		t.Run(name, func(t *testing.T) {
			reg := registrytest.New(t)
			addImage(t, reg, "latest", "amd64", layers...)
			image, store := resolve(t, reg.Ref("latest")), testStore(t)
			_, err := CreateImage(t.Context(), image, store, CreateOptions{})
			if !errors.Is(err, ErrNothing) || len(layers) > 0 && !errors.Is(err, ErrKind) {
				t.Errorf("create: %v", err)
			}
			if _, err := Push(t.Context(), testClient(t), image, store, nil); !errors.Is(err, ErrNothing) {
				t.Errorf("push: %v", err)
			}
			for _, r := range reg.Requests() {
				if !strings.HasPrefix(r, http.MethodGet) && !strings.HasPrefix(r, http.MethodHead) {
					t.Errorf("the registry was sent %s", r)
				}
			}
		})
	}
}

// TestOneBadLayer leaves the others be.
func TestOneBadLayer(t *testing.T) {
	good, top := gzipLayer(t, layertest.Tar(t, 30, 1)), gzipLayer(t, layertest.Tar(t, 30, 2))
	truncated := gzipLayer(t, layertest.Tar(t, 30, 3))
	truncated.packed = truncated.packed[:len(truncated.packed)/2]
	other := gzipLayer(t, layertest.Tar(t, 30, 4))
	other.diffID = digest.FromString("another")
	for name, bad := range map[string]testLayer{
		"truncated": truncated, "of another diff ID": other,
		"zstd": {v1.MediaTypeImageLayerZstd, []byte("z"), digest.FromString("z")},
	} {
		t.Run(name, func(t *testing.T) {
			reg := registrytest.New(t)
			addImage(t, reg, "latest", "amd64", good, bad, top)
			image, store := resolve(t, reg.Ref("latest")), testStore(t)
			outcomes, err := CreateImage(t.Context(), image, store, CreateOptions{})
			if err != nil || len(outcomes) != 3 || outcomes[0].Err != nil || outcomes[1].Err == nil || outcomes[2].Err != nil {
				t.Fatalf("%v, %v", outcomes, err)
			}
			checkEverySpan(t, store, good.packed)
			checkEverySpan(t, store, top.packed)
			if _, err := store.Head(image.Layers[1].Digest); !errors.Is(err, ErrNone) {
				t.Errorf("the bad layer has an index: %v", err)
			}
		})
	}
}

// TestImpliedAboveAGap refuses a layer that takes a directory's attributes from one
// that could not be read: with the defaults in their place a container would see
// another mode.
func TestImpliedAboveAGap(t *testing.T) {
	reg := registrytest.New(t)
	implies := gzipLayer(t, layertest.TarOf(t, "tmp/x", []byte("x")))
	addImage(t, reg, "latest", "amd64",
		testLayer{v1.MediaTypeImageLayerZstd, []byte("z"), digest.FromString("z")}, gzipLayer(t, layertest.Tar(t, 30, 2)), implies)
	image, store := resolve(t, reg.Ref("latest")), testStore(t)
	outcomes, err := CreateImage(t.Context(), image, store, CreateOptions{})
	if err != nil || len(outcomes) != 3 || outcomes[1].Err != nil {
		t.Fatalf("%v, %v", outcomes, err)
	}
	if err := outcomes[2].Err; err == nil || !strings.Contains(err.Error(), "implies directory tmp") {
		t.Errorf("the layer above: %v", err)
	}
}

// watchCount counts the layers that are read.
func watchCount(n *int) CreateOptions {
	return CreateOptions{Watch: func(_ ImageLayer, r io.Reader) io.Reader {
		*n++
		return r
	}}
}

// TestOutageKeepsFinishedLayers ends a run in its second layer: nothing of it is an
// index, and the next run needs only what is missing.
func TestOutageKeepsFinishedLayers(t *testing.T) {
	for name, outage := range map[string]func(*registrytest.Registry, context.CancelFunc){
		"registry": func(reg *registrytest.Registry, _ context.CancelFunc) {
			down := registrytest.Status(http.StatusServiceUnavailable, "")
			reg.Fail(down, down, down, down)
		},
		"interrupt": func(_ *registrytest.Registry, cancel context.CancelFunc) { cancel() },
	} {
		t.Run(name, func(t *testing.T) {
			reg := registrytest.New(t)
			layers := testImage(t, reg)
			image, store := resolve(t, reg.Ref("latest")), testStore(t)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			outcomes, err := CreateImage(ctx, image, store, CreateOptions{Watch: func(l ImageLayer, r io.Reader) io.Reader {
				if l.Digest == image.Layers[1].Digest {
					outage(reg, cancel)
				}
				return r
			}})
			if err == nil || len(outcomes) != 2 || outcomes[0].Err != nil {
				t.Fatalf("%v, %v", outcomes, err)
			}
			noIndex(t, store)
			reg.ClearFaults()
			n := 0
			if _, err := CreateImage(t.Context(), image, store, watchCount(&n)); err != nil || n != 1 {
				t.Errorf("the second run read %d layers, %v", n, err)
			}
			for _, packed := range layers {
				checkEverySpan(t, store, packed)
			}
		})
	}
}

// TestKilledCreate kills a process in its second layer: what it leaves is neither
// used nor pushed, and the next run gives what an undisturbed one gives and tidies up.
func TestKilledCreate(t *testing.T) {
	if dir := os.Getenv("LACUNA_TEST_STORE"); dir != "" {
		dieCreating(t, dir, os.Getenv("LACUNA_TEST_REF"))
		return
	}
	reg := registrytest.New(t)
	testImage(t, reg)
	ref := reg.Ref("latest")
	image, store, undisturbed := resolve(t, ref), testStore(t), testStore(t)
	cmd := exec.Command(os.Args[0], "-test.run=^TestKilledCreate$")
	cmd.Env = append(os.Environ(), "LACUNA_TEST_STORE="+store.dir, "LACUNA_TEST_REF="+ref)
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != -1 {
		t.Fatalf("the child was not killed: %v\n%s", err, out)
	}
	noIndex(t, store)
	if _, err := Push(t.Context(), testClient(t), image, store, nil); !errors.Is(err, ErrNothing) {
		t.Errorf("push of what a killed process left: %v", err)
	}
	// And what it would have left a little later.
	if err := os.WriteFile(filepath.Join(store.dir, temporary+"1"), []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
	live, err := newTemp(store.dir)
	if err != nil {
		t.Fatal(err)
	}
	defer live.Close()
	n := 0
	if _, err := CreateImage(t.Context(), image, store, watchCount(&n)); err != nil || n != 1 {
		t.Fatalf("%d layers were read, %v", n, err)
	}
	if _, err := CreateImage(t.Context(), image, undisturbed, CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	for _, l := range image.Layers {
		got, err := os.ReadFile(store.Path(l.Digest))
		want, wantErr := os.ReadFile(undisturbed.Path(l.Digest))
		if err != nil || wantErr != nil || string(got) != string(want) {
			t.Errorf("index of %d bytes, undisturbed %d, %v, %v", len(got), len(want), err, wantErr)
		}
	}
	left, err := filepath.Glob(filepath.Join(store.dir, temporary+"*"))
	if err != nil || len(left) != 1 || left[0] != live.Name() {
		t.Errorf("temporary files that are left: %q, %v; the living one is %s", left, err, live.Name())
	}
}

func dieCreating(t *testing.T, dir, ref string) {
	store, err := OpenStore(dir)
	if err != nil {
		t.Fatal(err)
	}
	image := resolve(t, ref)
	_, err = CreateImage(t.Context(), image, store, CreateOptions{Watch: func(l ImageLayer, r io.Reader) io.Reader {
		if l.Digest == image.Layers[1].Digest {
			_ = unix.Kill(os.Getpid(), unix.SIGKILL)
		}
		return r
	}})
	t.Fatal("alive", err)
}

// TestSecondImageOnOneBase has two images share a layer whose starts read different
// parts of it: the shared index has the checkpoints of both.
func TestSecondImageOnOneBase(t *testing.T) {
	reg := registrytest.New(t)
	base := gzipLayer(t, layertest.Tar(t, 150, 1))
	addImage(t, reg, "one", "amd64", base)
	addImage(t, reg, "two", "amd64", base, gzipLayer(t, layertest.Tar(t, 5, 2)))
	store := testStore(t)
	if _, err := CreateImage(t.Context(), resolve(t, reg.Ref("one")), store, CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	d := digest.FromBytes(base.packed)
	f, dense, err := store.openWhole(d, store.densePath(d, spans.BuildOptions{}))
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
	// What the start of a third image reads, predicted on this machine before.
	n := dense.Map.Spans()
	starts := [][3]int64{{0, n / 5, 1}, {0, n / 2, 3}, {0, n - 2, 2}}
	if err := store.PutPrediction(digest.FromString("third"), &Prediction{Layers: []digest.Digest{d}, Spans: starts}); err != nil {
		t.Fatal(err)
	}
	for _, force := range []bool{false, true} {
		if _, err := CreateImage(t.Context(), resolve(t, reg.Ref("two")), store, CreateOptions{Force: force}); err != nil {
			t.Fatal(err)
		}
		h, err := store.Head(d)
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range starts {
			if a, b := h.Map.Fetched(s[1], s[1]+s[2]), dense.Map.Fetched(s[1], s[1]+s[2]); a != b {
				t.Errorf("run %v fetches %d bytes, with all checkpoints %d", s, a, b)
			}
		}
		if len(h.Map.Checkpoints)*2 > len(dense.Map.Checkpoints) {
			t.Errorf("%d of %d checkpoints kept", len(h.Map.Checkpoints), len(dense.Map.Checkpoints))
		}
	}
	checkEverySpan(t, store, base.packed)
}

// TestForce replaces indexes; without it they are left as they are.
func TestForce(t *testing.T) {
	reg := registrytest.New(t)
	testImage(t, reg)
	image, store := resolve(t, reg.Ref("latest")), testStore(t)
	for i, want := range []int{2, 0, 2} {
		n := 0
		o := watchCount(&n)
		o.Force = i == 2
		before, _ := os.Stat(store.Path(image.Layers[0].Digest))
		if _, err := CreateImage(t.Context(), image, store, o); err != nil || n != want {
			t.Errorf("run %d read %d layers, %v", i, n, err)
		}
		after, err := os.Stat(store.Path(image.Layers[0].Digest))
		if err != nil || i == 1 && !os.SameFile(before, after) {
			t.Errorf("run %d wrote the index again, %v", i, err)
		}
	}
}

// TestIndexFromRegistryIsMadeAnew has a store with an index whose windows are not all
// here, though its file has its whole length.
func TestIndexFromRegistryIsMadeAnew(t *testing.T) {
	reg := registrytest.New(t)
	testImage(t, reg)
	image, store := resolve(t, reg.Ref("latest")), testStore(t)
	if _, err := CreateImage(t.Context(), image, store, CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	layer := image.Layers[0].Digest
	h, err := store.Head(layer)
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(store.Path(layer))
	if err != nil {
		t.Fatal(err)
	}
	found := testStore(t)
	if err := found.Put(layer, b[:h.Size], Origin{Ref: "r"}); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(found.Path(layer), h.IndexSize()); err != nil {
		t.Fatal(err)
	}
	if _, err := Push(t.Context(), testClient(t), image, found, nil); !errors.Is(err, ErrNothing) {
		t.Errorf("holes were pushed: %v", err)
	}
	n := 0
	if _, err := CreateImage(t.Context(), image, found, watchCount(&n)); err != nil || n != 2 {
		t.Errorf("%d layers were read, %v", n, err)
	}
	if _, ok, err := found.Origin(layer); ok || err != nil {
		t.Errorf("it still has an origin, %v", err)
	}
}

func TestPlatforms(t *testing.T) {
	reg := registrytest.New(t)
	layer := gzipLayer(t, layertest.Tar(t, 5, 1))
	amd, arm := addImage(t, reg, "amd", "amd64", layer), addImage(t, reg, "arm", "arm64", layer)
	unknown := arm
	unknown.Platform = &v1.Platform{OS: "unknown", Architecture: "unknown"}
	list := v1.Index{MediaType: v1.MediaTypeImageIndex, Manifests: []v1.Descriptor{amd, unknown, arm}}
	list.SchemaVersion = 2
	body, err := json.Marshal(list)
	if err != nil {
		t.Fatal(err)
	}
	reg.AddManifest("both", body)
	for _, tc := range []struct{ tag, platform, want string }{
		{"both", "linux/amd64", "amd64"},
		{"both", "linux/arm64, linux/amd64", "arm64 amd64"},
		{"both", "all", "amd64 arm64"},
		{"both", "linux/s390x", "error: nothing for platform linux/s390x; it has linux/amd64, linux/arm64"},
		{"both", "linux/amd64,linux/s390x", "error: nothing for platform linux/s390x"},
		{"arm", "linux/arm64", "arm64"},
		{"arm", "all", "arm64"},
		{"arm", "linux/amd64", "error: nothing for platform linux/amd64; it has linux/arm64"},
		{"arm", "linux//", "error: platform"},
	} {
		var images []*Image
		p, err := ParsePlatforms(tc.platform)
		if err == nil {
			images, err = ResolveImages(t.Context(), testClient(t), nil, reg.Ref(tc.tag), p)
		}
		var got []string
		for _, i := range images {
			got = append(got, i.Platform.Architecture)
		}
		if want, bad := strings.CutPrefix(tc.want, "error: "); bad {
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%s for %s: %v, want %q", tc.tag, tc.platform, err, want)
			}
		} else if err != nil || fmt.Sprint(got) != "["+want+"]" {
			t.Errorf("%s for %s: %q, %v, want %q", tc.tag, tc.platform, got, err, want)
		}
	}
}

func TestReferences(t *testing.T) {
	for ref, want := range map[string]string{
		"python":                      "docker.io/library/python",
		"team/app:1":                  "docker.io/team/app:1",
		"docker.io/python@sha256:abc": "no digest",
		"example.com/app":             "example.com/app:latest",
	} {
		if _, err := ResolveImages(t.Context(), testClient(t), nil, ref, nil); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", ref, err, want)
		}
	}
	reg := registrytest.New(t)
	body := []byte(`{"schemaVersion":2,"config":{"mediaType":"application/vnd.cncf.helm.config.v1+json","size":2},"layers":[{}]}`)
	reg.AddManifest("chart", body)
	if _, err := ResolveImages(t.Context(), testClient(t), nil, reg.Ref("chart"), nil); err == nil || !strings.Contains(err.Error(), "helm.config.v1+json, which is no container image") {
		t.Errorf("a chart: %v", err)
	}
}
