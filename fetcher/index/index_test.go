package index

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/lacuna-snapshotter/lacuna/erofs"
	"github.com/lacuna-snapshotter/lacuna/fetcher/layertest"
	"github.com/lacuna-snapshotter/lacuna/fetcher/registry"
	"github.com/lacuna-snapshotter/lacuna/fetcher/registry/registrytest"
	"github.com/lacuna-snapshotter/lacuna/fetcher/spans"
)

var update = flag.Bool("update", false, "write the golden files anew")

func createIndex(t testing.TB, packed []byte, opts spans.BuildOptions) (*Head, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "index")
	h, _, err := Create(t.Context(), bytes.NewReader(packed), path, opts, Expect{})
	if err != nil {
		t.Fatal(err)
	}
	return h, path
}

func TestRoundTrip(t *testing.T) {
	packed := layertest.Gzip(t, layertest.Tar(t, 60, 1))
	h, path := createIndex(t, packed, spans.BuildOptions{Spacing: 64 << 10})
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	got, err := DecodeHead(b)
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got, h) {
		t.Error("decoded head differs")
	}
	if h.Map.Layer != digest.FromBytes(packed) || int64(len(b)) != h.IndexSize() {
		t.Errorf("layer %s, %d bytes of %d", h.Map.Layer, len(b), h.IndexSize())
	}
	if err := erofs.Check(got.Bootstrap, got.Map.BlobSize); err != nil {
		t.Error(err)
	}
	_, again := createIndex(t, packed, spans.BuildOptions{Spacing: 64 << 10})
	if second, _ := os.ReadFile(again); !bytes.Equal(b, second) {
		t.Error("two runs gave different indexes")
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	l := spans.Layer{Map: got.Map, Remote: &layertest.Remote{Data: packed}, Windows: NewWindows(got, f, nil)}
	n := int64(0)
	for i := range got.Map.Spans() {
		if err := l.Fetch(t.Context(), i, i+1, func(int64, []byte) error { n++; return nil }); err != nil {
			t.Fatal(err)
		}
	}
	if n != got.Map.Spans() || n < 20 {
		t.Errorf("%d spans", n)
	}
}

// TestGolden holds the format still: an index that an older version wrote must
// decode to the same map.
func TestGolden(t *testing.T) {
	golden, want := "testdata/layer.index", "testdata/layer.json"
	if *update {
		h, path := createIndex(t, layertest.Gzip(t, layertest.Tar(t, 5, 9)), spans.BuildOptions{Spacing: 64 << 10, SpanSize: 64 << 10})
		b, _ := os.ReadFile(path)
		j, _ := json.MarshalIndent(h.Map, "", " ")
		for name, data := range map[string][]byte{golden: b, want: j} {
			if err := os.WriteFile(name, data, 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	b, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	h, err := DecodeHead(b)
	if err != nil {
		t.Fatal(err)
	}
	got, _ := json.MarshalIndent(h.Map, "", " ")
	expected, err := os.ReadFile(want)
	if err != nil || !bytes.Equal(got, expected) {
		t.Errorf("the golden index decodes differently: %v", err)
	}
}

func TestCreateChecksTheLayer(t *testing.T) {
	packed := layertest.Gzip(t, layertest.Tar(t, 5, 1))
	for _, want := range []Expect{{Layer: digest.FromString("x")}, {DiffID: digest.FromString("x")}} {
		path := filepath.Join(t.TempDir(), "index")
		_, _, err := Create(t.Context(), bytes.NewReader(packed), path, spans.BuildOptions{}, want)
		if err == nil || !strings.Contains(err.Error(), "expected") && !strings.Contains(err.Error(), "configuration says") {
			t.Error(err)
		}
		if left, _ := os.ReadDir(filepath.Dir(path)); len(left) != 0 {
			t.Errorf("left behind: %v", left)
		}
	}
}

func TestDecodeRefuses(t *testing.T) {
	_, path := createIndex(t, layertest.Gzip(t, layertest.Tar(t, 20, 1)), spans.BuildOptions{})
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for cut := 0; cut < len(b); cut += 1 + len(b)/200 {
		if h, err := DecodeHead(b[:cut]); err == nil && h.Size > int64(cut) {
			t.Errorf("accepted %d of %d bytes", cut, len(b))
		}
	}
	old := bytes.Clone(b)
	copy(old, "LACUNAX0")
	if _, err := DecodeHead(old); !errors.Is(err, ErrFormat) {
		t.Errorf("another version: %v", err)
	}
}

func TestStore(t *testing.T) {
	s, err := OpenStore(filepath.Join(t.TempDir(), "indexes"))
	if err != nil {
		t.Fatal(err)
	}
	packed := layertest.Gzip(t, layertest.Tar(t, 5, 1))
	d, other := digest.FromBytes(packed), digest.FromString("other")
	if _, err := s.Head(d); !errors.Is(err, ErrNone) {
		t.Fatal(err)
	}
	_, path := createIndex(t, packed, spans.BuildOptions{})
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Put(other, b, Origin{}); !errors.Is(err, ErrFormat) || !strings.Contains(err.Error(), "not of") {
		t.Fatalf("index of another layer: %v", err)
	}
	if err := s.Put(d, b, Origin{Ref: "r"}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Head(d); err != nil {
		t.Fatal(err)
	}
	if from, ok, err := s.Origin(d); !ok || err != nil || from.Ref != "r" {
		t.Errorf("origin %v %v %v", from, ok, err)
	}
	if err := os.Rename(s.Path(d), s.Path(other)); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Head(other); !errors.Is(err, ErrFormat) {
		t.Errorf("index of another layer: %v", err)
	}
	if list, err := s.Layers(); err != nil || len(list) != 1 || list[0] != other {
		t.Errorf("%v %v", list, err)
	}
	for range 2 {
		if err := s.Remove(other); err != nil {
			t.Error(err)
		}
	}
}

func TestWindowsFromRemote(t *testing.T) {
	packed := layertest.Gzip(t, layertest.Tar(t, 100, 1))
	h, path := createIndex(t, packed, spans.BuildOptions{Spacing: 64 << 10})
	all, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	local := filepath.Join(t.TempDir(), "local")
	if err := os.WriteFile(local, all[:h.Size], 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(local, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if len(h.Groups) < 3 {
		t.Fatalf("only %d groups", len(h.Groups))
	}
	reads, fail := 0, false
	remote := func(_ context.Context, p []byte, off int64, verify func([]byte) error) error {
		reads++
		if fail {
			return errors.New("down")
		}
		copy(p, all[off:])
		return verify(p)
	}
	w := NewWindows(h, f, remote)
	for range 2 { // the second time from what was kept
		for i, c := range h.Map.Checkpoints {
			if !c.Window {
				continue
			}
			if _, err := w.Window(t.Context(), i); err != nil {
				t.Fatal(err)
			}
		}
	}
	if reads != len(h.Groups) {
		t.Errorf("%d reads for %d groups", reads, len(h.Groups))
	}
	if now, _ := os.ReadFile(local); !bytes.Equal(now, all) {
		t.Error("the local copy did not become complete")
	}
	if _, err := f.WriteAt([]byte("damage"), h.Groups[1].Off+5); err != nil {
		t.Fatal(err)
	}
	fail = true
	if _, err := w.Window(t.Context(), h.Groups[1].First); err == nil {
		t.Error("damaged windows were used")
	}
	all[h.Groups[1].Off+5] ^= 1
	fail = false
	if _, err := w.Window(t.Context(), h.Groups[1].First); !errors.Is(err, ErrFormat) {
		t.Errorf("forged windows: %v", err)
	}
}

// testImage puts a two-layer image into the registry.
func testImage(t *testing.T, reg *registrytest.Registry) (layers [][]byte) {
	t.Helper()
	var m v1.Manifest
	config := v1.Image{Platform: v1.Platform{OS: "linux", Architecture: "amd64"}}
	for seed := range uint64(2) {
		tar := layertest.Tar(t, 30, seed)
		packed := layertest.Gzip(t, tar)
		layers = append(layers, packed)
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, digest.FromBytes(tar))
		m.Layers = append(m.Layers, v1.Descriptor{MediaType: v1.MediaTypeImageLayerGzip, Digest: reg.AddBlob(packed), Size: int64(len(packed))})
	}
	c, err := json.Marshal(config)
	if err != nil {
		t.Fatal(err)
	}
	m.Config = v1.Descriptor{MediaType: v1.MediaTypeImageConfig, Digest: reg.AddBlob(c), Size: int64(len(c))}
	m.SchemaVersion = 2
	m.MediaType = v1.MediaTypeImageManifest
	body, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	reg.AddManifest("latest", body)
	return layers
}

func TestImageToArtifactAndBack(t *testing.T) {
	reg := registrytest.New(t)
	layers := testImage(t, reg)
	client, err := registry.New(registry.Options{PlainHTTP: true, Retry: registry.Retry{Attempts: 2, Base: time.Millisecond}})
	if err != nil {
		t.Fatal(err)
	}
	images, err := ResolveImages(t.Context(), client, nil, reg.Ref("latest"), nil)
	if err != nil {
		t.Fatal(err)
	}
	image := images[0]
	store, err := OpenStore(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	watched := 0
	_, err = CreateImage(t.Context(), image, store, CreateOptions{Watch: func(_ ImageLayer, r io.Reader) io.Reader {
		watched++
		return r
	}})
	if err != nil || watched != 2 {
		t.Fatal(watched, err)
	}
	if _, err := findArtifact(t.Context(), image.Repo, image.Manifest.Digest); !errors.Is(err, ErrNone) {
		t.Fatalf("before the push: %v", err)
	}
	for _, packed := range layers {
		checkEverySpan(t, store, packed)
	}

	// What Push would send, put there by hand: the real push is tested with a
	// real registry in the integration tests.
	var entries []Entry
	for i := range layers {
		layer := digest.FromBytes(layers[i])
		b, err := os.ReadFile(store.Path(layer))
		if err != nil {
			t.Fatal(err)
		}
		h, err := store.Head(layer)
		if err != nil {
			t.Fatal(err)
		}
		entries = append(entries, Entry{
			Layer: layer, HeadSize: h.Size, HeadDigest: digest.FromBytes(b[:h.Size]),
			Content: v1.Descriptor{Digest: reg.AddBlob(b), Size: int64(len(b))},
		})
	}
	put := func(subject v1.Descriptor, later ...v1.Descriptor) {
		body, err := encodeArtifact(subject, v1.DescriptorEmptyJSON, entries, "2026-01-01T00:00:00Z")
		if err != nil {
			t.Fatal(err)
		}
		// What a later version may put beside ours is passed over.
		var m v1.Manifest
		if err := json.Unmarshal(body, &m); err != nil {
			t.Fatal(err)
		}
		m.Layers = slices.Concat(later, m.Layers, later)
		if body, err = json.Marshal(m); err != nil {
			t.Fatal(err)
		}
		d := v1.Descriptor{MediaType: v1.MediaTypeImageManifest, ArtifactType: ArtifactType, Digest: reg.AddManifest("index", body), Size: int64(len(body))}
		list, err := json.Marshal(v1.Index{Versioned: specs.Versioned{SchemaVersion: 2}, Manifests: []v1.Descriptor{d}})
		if err != nil {
			t.Fatal(err)
		}
		reg.AddReferrers(image.Manifest.Digest, list)
	}
	put(v1.Descriptor{Digest: digest.FromString("another image")})
	if _, err := findArtifact(t.Context(), image.Repo, image.Manifest.Digest); !errors.Is(err, ErrFormat) {
		t.Fatalf("artifact of another image: %v", err)
	}
	put(image.Manifest, v1.Descriptor{MediaType: "application/vnd.lacuna.index.erofs.v7", Digest: digest.FromString("later"), Size: 10})
	found, err := findArtifact(t.Context(), image.Repo, image.Manifest.Digest)
	if err != nil || len(found.Entries) != 2 {
		t.Fatal(found, err)
	}
	head, err := fetchHeadOf(t.Context(), image.Repo, found.Entries[1])
	if err != nil {
		t.Fatal(err)
	}
	other, err := OpenStore(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if err := other.Put(found.Entries[1].Layer, head, Origin{"r", found.Entries[1]}); err != nil {
		t.Fatal(err)
	}
	if err := other.Put(found.Entries[0].Layer, head, Origin{}); !errors.Is(err, ErrFormat) {
		t.Errorf("a head for the wrong layer: %v", err)
	}
	promise := found.Entries[0]
	promise.HeadSize, promise.Content.Size = maxHead, maxHead
	if _, err := fetchHeadOf(t.Context(), image.Repo, promise); err == nil {
		t.Error("a head longer than its blob")
	}
	reg.Fail(registrytest.Flip)
	if _, err := fetchHeadOf(t.Context(), image.Repo, found.Entries[0]); !errors.Is(err, ErrFormat) {
		t.Errorf("a damaged head: %v", err)
	}
}

// checkEverySpan fetches each span of a stored layer by itself.
func checkEverySpan(t *testing.T, store *Store, packed []byte) {
	t.Helper()
	d := digest.FromBytes(packed)
	h, err := store.Head(d)
	if err != nil {
		t.Fatal(err)
	}
	f, err := store.File(d)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	l := spans.Layer{Map: h.Map, Remote: &layertest.Remote{Data: packed}, Windows: NewWindows(h, f, nil)}
	for i := range h.Map.Spans() {
		if err := l.Fetch(t.Context(), i, i+1, func(int64, []byte) error { return nil }); err != nil {
			t.Fatal(err)
		}
	}
}

// TestThin keeps the checkpoints that runs start from, each in a group of its
// own, and thins out the others.
func TestThin(t *testing.T) {
	packed := layertest.Gzip(t, layertest.Tar(t, 150, 1))
	store, err := OpenStore(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	d := digest.FromBytes(packed)
	dense, _, err := Create(t.Context(), bytes.NewReader(packed), store.Path(d), denser(spans.BuildOptions{}), Expect{})
	if err != nil {
		t.Fatal(err)
	}
	n := dense.Map.Spans()
	runs := []Run{{n / 5, n/5 + 1}, {n / 2, n/2 + 3}, {n - 2, n}}
	f, head, err := store.open(d, store.Path(d))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := thin(&made{head: head, file: f}, nil, store.Path(d), runs, spans.DefaultSpacing); err != nil {
		t.Fatal(err)
	}
	h, err := store.Head(d)
	if err != nil {
		t.Fatal(err)
	}
	if got, all := len(h.Map.Checkpoints), len(dense.Map.Checkpoints); got*2 > all {
		t.Errorf("%d of %d checkpoints kept", got, all)
	}
	for _, r := range runs {
		if a, b := h.Map.Fetched(r.First, r.Last), dense.Map.Fetched(r.First, r.Last); a != b {
			t.Errorf("run %v fetches %d bytes, with all checkpoints %d", r, a, b)
		}
		ck, _ := h.Map.CheckpointOf(r.First)
		if g, err := h.group(ck); err != nil || g.Count != 1 {
			t.Errorf("run %v: window in %+v, %v", r, g, err)
		}
	}
	checkEverySpan(t, store, packed)
}

func FuzzDecodeHead(f *testing.F) {
	_, path := createIndex(f, layertest.Gzip(f, layertest.Tar(f, 3, 1)), spans.BuildOptions{Spacing: 64 << 10})
	b, err := os.ReadFile(path)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	for _, b := range hostileHeads(f, 1000) {
		if len(b) < 100<<10 { // in others there is only noise to mutate
			f.Add(b)
		}
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := DecodeHead(b)
		if err == nil {
			_ = erofs.Check(h.Bootstrap, h.Map.BlobSize)
		}
	})
}

// FuzzMap gets behind zstd: decode, encode, decode is a fixed point.
func FuzzMap(f *testing.F) {
	h, _ := createIndex(f, layertest.Gzip(f, layertest.Tar(f, 3, 1)), spans.BuildOptions{Spacing: 64 << 10})
	f.Add(encodeMap(h))
	f.Add(repeated(mapBytes(1<<40, 1<<40, 1<<40, 4096, 4096), 20, 0, 0, 1))
	f.Add(repeated(repeated(mapBytes(1<<40, 1<<40, 1<<40, 4096, 4096), 0), 20, 1, 1))
	enc, err := zstd.NewWriter(nil)
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { enc.Close() })
	f.Fuzz(func(t *testing.T, b []byte) {
		h := &Head{}
		if decodeMap(b, h, headBase) != nil || h.Map.Check() != nil {
			return
		}
		again := &Head{}
		if err := decodeMap(encodeMap(h), again, headBase); err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(h, again) {
			t.Fatal("not a fixed point")
		}
	})
}

// TestLayerFromLiars has a mirror that gives wrong bytes of the layer and of its
// index: everything is read, right, from the registry behind it.
func TestLayerFromLiars(t *testing.T) {
	origin, mirror := registrytest.New(t), registrytest.New(t)
	hosts := t.TempDir()
	dir := filepath.Join(hosts, origin.Host())
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	text := "server = \"" + origin.URL + "\"\n[host.\"" + mirror.URL + "\"]\ncapabilities = [\"pull\"]\n"
	if err := os.WriteFile(filepath.Join(dir, "hosts.toml"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	client, err := registry.New(registry.Options{HostsDirs: []string{hosts}, Retry: registry.Retry{Attempts: 2, Base: time.Millisecond}})
	if err != nil {
		t.Fatal(err)
	}
	packed := layertest.Gzip(t, layertest.Tar(t, 100, 1))
	h, path := createIndex(t, packed, spans.BuildOptions{Spacing: 64 << 10})
	all, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	layer := origin.AddBlob(packed)
	mirror.AddBlob(packed)
	blob := v1.Descriptor{MediaType: LayerType, Digest: origin.AddBlob(all), Size: int64(len(all))}
	mirror.AddBlob(all)
	flip := make([]registrytest.Fault, 1000)
	for i := range flip {
		flip[i] = registrytest.Flip
	}
	mirror.Fail(flip...)
	entry := Entry{Layer: layer, Content: blob, HeadSize: h.Size, HeadDigest: digest.FromBytes(all[:h.Size])}
	repo, _, err := client.Repository(origin.Ref("1"))
	if err != nil {
		t.Fatal(err)
	}
	head, err := fetchHeadOf(t.Context(), repo, entry)
	if err != nil {
		t.Fatal(err)
	}
	store, err := OpenStore(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if err := store.Put(layer, head, Origin{origin.Ref("1"), entry}); err != nil {
		t.Fatal(err)
	}
	l, err := store.Open(client, origin.Ref("1"), h)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	spans := int64(0)
	for i := range l.Map.Spans() {
		if err := l.Fetch(t.Context(), i, i+1, func(int64, []byte) error { spans++; return nil }); err != nil {
			t.Fatal(err)
		}
	}
	if spans != l.Map.Spans() || len(mirror.Requests()) == 0 {
		t.Errorf("%d spans of %d, %d requests to the mirror", spans, l.Map.Spans(), len(mirror.Requests()))
	}
}
