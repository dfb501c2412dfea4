package index

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/lacuna-snapshotter/lacuna/fetcher/layertest"
	"github.com/lacuna-snapshotter/lacuna/fetcher/registry"
	"github.com/lacuna-snapshotter/lacuna/fetcher/registry/registrytest"
	"github.com/lacuna-snapshotter/lacuna/fetcher/spans"
)

// published is an image with an index in a registry.
type published struct {
	reg        *registrytest.Registry
	image      *Image
	layers     []testLayer
	artifact   digest.Digest
	contents   []digest.Digest // of the layers' indexes
	prediction *Prediction
	versions   int
}

func publishedImage(t *testing.T, layers int) *published {
	t.Helper()
	p := &published{reg: registrytest.New(t)}
	for i := range layers {
		p.layers = append(p.layers, gzipLayer(t, layertest.Tar(t, 8, uint64(i))))
	}
	addImage(t, p.reg, "latest", "amd64", p.layers...)
	p.image = resolve(t, p.reg.Ref("latest"))
	p.prediction = &Prediction{Layers: []digest.Digest{p.image.Layers[0].Digest}, Spans: [][3]int64{{0, 0, 1}}}
	return p
}

// publish puts an index of the first layers, made with options, in the place of the
// one that is there, which it deletes.
func (p *published) publish(t *testing.T, layers int, o spans.BuildOptions) {
	t.Helper()
	for _, d := range append(p.contents, p.artifact) {
		p.reg.Remove(d)
	}
	p.contents = nil
	var entries []Entry
	for _, l := range p.layers[:layers] {
		h, path := createIndex(t, l.packed, o)
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		content := v1.Descriptor{Digest: p.reg.AddBlob(b), Size: int64(len(b))}
		p.contents = append(p.contents, content.Digest)
		entries = append(entries, Entry{Layer: digest.FromBytes(l.packed), HeadSize: h.Size, HeadDigest: digest.FromBytes(b[:h.Size]), Content: content})
	}
	p.versions++
	raw, err := json.Marshal(p.prediction)
	if err != nil {
		t.Fatal(err)
	}
	prediction := v1.Descriptor{MediaType: PredictionType, Digest: p.reg.AddBlob(raw), Size: int64(len(raw))}
	body, err := encodeArtifact(p.image.Manifest, prediction, entries, fmt.Sprintf("2026-01-01T00:00:%02dZ", p.versions))
	if err != nil {
		t.Fatal(err)
	}
	p.announce(t, body)
}

// announce makes an artifact the image's index.
func (p *published) announce(t *testing.T, body []byte) {
	t.Helper()
	p.artifact = p.reg.AddManifest("index", body)
	d := v1.Descriptor{MediaType: v1.MediaTypeImageManifest, ArtifactType: ArtifactType, Digest: p.artifact, Size: int64(len(body))}
	list, err := json.Marshal(v1.Index{Versioned: specs.Versioned{SchemaVersion: 2}, Manifests: []v1.Descriptor{d}})
	if err != nil {
		t.Fatal(err)
	}
	p.reg.AddReferrers(p.image.Manifest.Digest, list)
}

func (p *published) want(i int) Want {
	w := Want{Ref: p.reg.Ref("latest"), Manifest: p.image.Manifest.Digest, Layer: p.image.Layers[i].Digest}
	for _, l := range p.image.Layers[i:] {
		w.Above = append(w.Above, l.Digest)
	}
	return w
}

// asked is how many requests were about a path.
func (p *published) asked(path string) (n int) {
	for _, r := range p.reg.Requests() {
		if strings.Contains(r, path) {
			n++
		}
	}
	return n
}

func testResolver(t *testing.T) *Resolver {
	t.Helper()
	return NewResolver(testClient(t), testStore(t), slog.New(slog.DiscardHandler))
}

// later makes what a resolver remembers older.
func (r *Resolver) later(by time.Duration) {
	r.answers.mu.Lock()
	defer r.answers.mu.Unlock()
	for k, a := range r.answers.list {
		a.at = a.at.Add(-by)
		r.answers.list[k] = a
	}
}

// TestOneAnswerForAnImage finds all layers of an image with one question, and has the
// heads of those above the first one come with it.
func TestOneAnswerForAnImage(t *testing.T) {
	p := publishedImage(t, 3)
	p.publish(t, 3, spans.BuildOptions{})
	r := testResolver(t)
	if _, err := r.Find(t.Context(), p.want(0), testStore(t)); err != nil {
		t.Fatal(err)
	}
	for i := range p.layers {
		for tries := 0; ; tries++ {
			_, err := r.store.Head(p.image.Layers[i].Digest)
			if err == nil {
				break
			}
			if tries > 60_000 {
				t.Fatal("layer", i, err)
			}
			time.Sleep(time.Millisecond)
		}
		head, err := r.Find(t.Context(), p.want(i), testStore(t))
		if err != nil || head.Map.Layer != p.image.Layers[i].Digest {
			t.Fatal(head, err)
		}
	}
	if runs, err := r.Prediction(t.Context(), p.want(0)); err != nil || !slices.Equal(runs, []Run{{0, 1}}) {
		t.Error(runs, err)
	}
	if n := p.asked("/referrers/"); n != 1 {
		t.Errorf("the registry was asked for the image's index %d times", n)
	}
	for _, d := range p.contents {
		if n := p.asked(d.String()); n != 1 {
			t.Errorf("a head was fetched %d times", n)
		}
	}
}

// TestIndexReplacedAndDeleted has the repository replace an image's index between two
// layers of a pull, and delete the old one.
func TestIndexReplacedAndDeleted(t *testing.T) {
	p := publishedImage(t, 2)
	p.publish(t, 2, spans.BuildOptions{})
	r := testResolver(t)
	first := p.want(0)
	first.Above = nil // so that the second is not fetched beside it
	if _, err := r.Find(t.Context(), first, testStore(t)); err != nil {
		t.Fatal(err)
	}
	p.publish(t, 2, spans.BuildOptions{SpanSize: 8 << 10})
	head, err := r.Find(t.Context(), p.want(1), testStore(t))
	if err != nil || head.Map.SpanSize != 8<<10 {
		t.Fatal(head, err)
	}
	p.prediction.Spans[0][2] = 2
	p.publish(t, 1, spans.BuildOptions{})
	p.reg.Remove(p.contents[0]) // what is new leads to nothing either
	if _, err := r.Published(t.Context(), p.want(0)); err == nil {
		t.Error("found an index that is not there")
	}
}

// TestAnswersExpire: that there is no index holds for the layers of one pull, and that
// a layer has none in it as well.
func TestAnswersExpire(t *testing.T) {
	p := publishedImage(t, 2)
	r := testResolver(t)
	none := func(i int) {
		t.Helper()
		if _, err := r.Find(t.Context(), p.want(i), testStore(t)); !errors.Is(err, ErrNone) {
			t.Fatal(err)
		}
	}
	none(0)
	p.publish(t, 1, spans.BuildOptions{})
	none(0)
	r.later(keepNone)
	if _, err := r.Find(t.Context(), p.want(0), testStore(t)); err != nil {
		t.Fatal(err)
	}
	none(1)
	p.publish(t, 2, spans.BuildOptions{})
	none(1)
	r.later(keepNone)
	if _, err := r.Find(t.Context(), p.want(1), testStore(t)); err != nil {
		t.Fatal(err)
	}
	p.publish(t, 2, spans.BuildOptions{SpanSize: 8 << 10})
	r.later(keepFound)
	if head, err := r.Published(t.Context(), p.want(0)); err != nil || head.Map.SpanSize != 8<<10 {
		t.Error(head, err)
	}
	for i := range 2 * mostAnswers {
		r.answers.remember(fmt.Sprint(i), answer{at: time.Now()})
	}
	if n := len(r.answers.list); n != mostAnswers {
		t.Errorf("%d answers are remembered", n)
	}
}

// TestFindFitting finds the index of a bootstrap that is mounted, past one of another
// layout in the store.
func TestFindFitting(t *testing.T) {
	p := publishedImage(t, 1)
	p.publish(t, 1, spans.BuildOptions{})
	r := testResolver(t)
	d := p.image.Layers[0].Digest
	head, err := r.Published(t.Context(), p.want(0))
	if err != nil {
		t.Fatal(err)
	}
	bootstrap := digest.FromBytes(head.Bootstrap)
	errOther := errors.New("another layout")
	fits := NewFit(func(h *Head) error {
		if digest.FromBytes(h.Bootstrap) != bootstrap {
			return errOther
		}
		return nil
	})
	own := testStore(t)
	unfit := NewFit(func(*Head) error { return errOther })
	fetched := p.asked(p.contents[0].String())
	for range 3 { // each reader of a hole asks
		if _, err := r.FindFitting(t.Context(), p.want(0), unfit, testStore(t), own); !errors.Is(err, errOther) {
			t.Error("another layout:", err)
		}
	}
	if n := p.asked(p.contents[0].String()) - fetched; n != 1 {
		t.Errorf("a head of another layout was fetched %d times", n)
	}
	if _, err := r.FindFitting(t.Context(), p.want(0), fits, testStore(t), own); err != nil {
		t.Fatal(err)
	}
	if _, found, err := own.Origin(d); !found || err != nil {
		t.Error(found, err)
	}
	noIndex(t, r.store)

	// The store's index is complete, and of the same layout: it needs no repository.
	_, path := createIndex(t, p.layers[0].packed, spans.BuildOptions{})
	if err := os.Rename(path, r.store.Path(d)); err != nil {
		t.Fatal(err)
	}
	shared := testStore(t)
	if err := r.store.Share(d, shared); err != nil {
		t.Fatal(err)
	}
	p.reg.Close()
	temp := testStore(t)
	if _, err := r.FindFitting(t.Context(), p.want(0), fits, shared, temp); err == nil {
		t.Error("the damaged index was found in its own place")
	}
	if _, err := r.FindFitting(t.Context(), p.want(0), fits, own, temp); err != nil {
		t.Fatal(err)
	}
	if err := own.Take(d, temp); err != nil {
		t.Fatal(err)
	}
	if f, _, err := own.openWhole(d, own.Path(d)); err != nil {
		t.Error(err)
	} else {
		f.Close()
	}
	noIndex(t, temp)
}

// TestSharedRequestIsNoCallers: a call that has given up leaves a request to the calls
// that wait for it. What its context carries, such as a fetch's place in a budget, has
// ended with it.
func TestSharedRequestIsNoCallers(t *testing.T) {
	p := publishedImage(t, 1)
	p.publish(t, 1, spans.BuildOptions{})
	type place struct{}
	client, err := registry.New(registry.Options{PlainHTTP: true, Retry: registry.Retry{Sleep: func(ctx context.Context, _ time.Duration) error {
		if ctx.Value(place{}) != nil { // which does not come back
			<-ctx.Done()
		}
		return ctx.Err()
	}}})
	if err != nil {
		t.Fatal(err)
	}
	r := NewResolver(client, testStore(t), slog.New(slog.DiscardHandler))
	begun, gate := make(chan struct{}), make(chan struct{})
	p.reg.Fail(func(w http.ResponseWriter, req *http.Request, content []byte) bool {
		close(begun)
		<-gate
		return registrytest.Status(http.StatusServiceUnavailable, "")(w, req, content)
	})
	ctx, cancel := context.WithCancel(context.WithValue(t.Context(), place{}, true))
	first, second := make(chan error), make(chan error)
	find := func(ctx context.Context, done chan error) {
		_, err := r.Find(ctx, p.want(0), testStore(t))
		done <- err
	}
	go find(ctx, first)
	<-begun
	go find(t.Context(), second)
	cancel()
	if err := <-first; !errors.Is(err, context.Canceled) {
		t.Error("the call that gave up:", err)
	}
	close(gate)
	if err := <-second; err != nil {
		t.Error("the other call:", err)
	}
}

// TestHostileDigests has what a repository says name content and layers by what is no
// digest: it would be a part of a URL, or of a path of this node.
func TestHostileDigests(t *testing.T) {
	const evil = "x:../../../../kept"
	image := digest.FromString("image")
	m := v1.Manifest{ArtifactType: ArtifactType, Subject: &v1.Descriptor{Digest: image}, Layers: []v1.Descriptor{{
		MediaType: LayerType, Digest: "sha256:../../../../other/blobs/x", Size: 1000, Annotations: map[string]string{
			annotationLayer: digest.FromString("layer").String(), annotationHeadSize: "1000", annotationHeadDigest: digest.FromString("head").String(),
		},
	}}}
	body, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := decodeArtifact(body, image); !errors.Is(err, ErrFormat) {
		t.Error("content:", err)
	}

	p := publishedImage(t, 1)
	p.publish(t, 1, spans.BuildOptions{})
	list, err := json.Marshal(v1.Index{Versioned: specs.Versioned{SchemaVersion: 2}, Manifests: []v1.Descriptor{{ArtifactType: ArtifactType, Digest: "latest/../../x"}}})
	if err != nil {
		t.Fatal(err)
	}
	p.reg.AddReferrers(p.image.Manifest.Digest, list)
	if _, err := testResolver(t).Published(t.Context(), p.want(0)); !errors.Is(err, ErrNone) {
		t.Error("a referrer:", err)
	}
	if n := p.asked(".."); n != 0 {
		t.Errorf("%d requests left the repository's paths", n)
	}

	for _, bad := range []digest.Digest{evil, "no digest"} {
		layer := gzipLayer(t, layertest.Tar(t, 1, 1))
		addImage(t, p.reg, "evil", "amd64", layer)
		body := bytes.ReplaceAll(manifestOf(t, p.reg.Ref("evil")), []byte(digest.FromBytes(layer.packed)), []byte(bad))
		p.reg.AddManifest("evil", body)
		if _, err := ResolveImages(t.Context(), testClient(t), nil, p.reg.Ref("evil"), nil); err == nil {
			t.Error("an image with a layer that is named", bad)
		}
		list, err := json.Marshal(v1.Index{Manifests: []v1.Descriptor{{Digest: bad, Platform: &v1.Platform{OS: "linux", Architecture: "amd64"}}}})
		if err != nil {
			t.Fatal(err)
		}
		p.reg.AddManifest("evil", list)
		if _, err := ResolveImages(t.Context(), testClient(t), nil, p.reg.Ref("evil"), nil); err == nil || p.asked(string(bad)) > 0 {
			t.Error("an image with a manifest that is named", bad, err)
		}
	}

	// A daemon before this one has stored it.
	dir := t.TempDir()
	s, err := OpenStore(filepath.Join(dir, "a", "b"))
	if err != nil {
		t.Fatal(err)
	}
	kept := filepath.Join(dir, "kept.index")
	for _, layer := range []digest.Digest{evil, "no digest"} {
		err := errors.Join(os.WriteFile(kept, nil, 0o600), s.PutPrediction(image, &Prediction{Layers: []digest.Digest{layer}}))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.Prediction(image); !errors.Is(err, ErrFormat) {
			t.Error("a prediction's layers:", err)
		}
		if _, err := s.RemoveMatching(image.String()); err != nil {
			t.Error(err)
		}
		if _, err := os.Stat(kept); err != nil {
			t.Error("a file outside of the store:", err)
		}
	}
}

// manifestOf is the manifest behind a reference.
func manifestOf(t *testing.T, ref string) []byte {
	t.Helper()
	repo, tag, err := testClient(t).Repository(ref)
	if err != nil {
		t.Fatal(err)
	}
	_, body, err := repo.Manifest(t.Context(), tag)
	if err != nil {
		t.Fatal(err)
	}
	return body
}

// TestHeadsAheadHaveBounds: an index that promises large heads for all layers above the
// one that is asked for gets room for a few at once.
func TestHeadsAheadHaveBounds(t *testing.T) {
	p := publishedImage(t, 1)
	w := p.want(0)
	var entries []Entry
	for i := range 8 {
		name := digest.FromString(fmt.Sprint(i))
		entries = append(entries, Entry{Layer: name, HeadSize: maxHead, HeadDigest: name, Content: v1.Descriptor{Digest: name, Size: maxHead}})
		w.Above = append(w.Above, name)
	}
	w.Layer = w.Above[len(w.Above)-1]
	body, err := encodeArtifact(p.image.Manifest, v1.DescriptorEmptyJSON, entries, "2026-01-01T00:00:00Z")
	if err != nil {
		t.Fatal(err)
	}
	p.announce(t, body)
	gate := make(chan struct{})
	for range entries {
		p.reg.Fail(registrytest.Until(gate))
	}
	done := make(chan error)
	r := testResolver(t)
	go func() {
		_, err := r.Find(t.Context(), w, testStore(t))
		done <- err
	}()
	const most = aheadMemory/maxHead + 1 // with its own
	asked := func() (n int) {
		for _, e := range entries {
			n += min(1, p.asked(e.Content.Digest.String()))
		}
		return n
	}
	for asked() < most {
		time.Sleep(time.Millisecond)
	}
	close(gate)
	if err := <-done; !registry.NotFound(err) {
		t.Error(err)
	}
	if n := asked(); n > most {
		t.Errorf("%d heads at once", n)
	}
}
