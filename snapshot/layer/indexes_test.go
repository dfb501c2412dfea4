package layer_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/snapshotters"
	"github.com/containerd/errdefs"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/lacuna-snapshotter/lacuna/fetcher/index"
	"github.com/lacuna-snapshotter/lacuna/fetcher/layertest"
	"github.com/lacuna-snapshotter/lacuna/fetcher/registry/registrytest"
	"github.com/lacuna-snapshotter/lacuna/fetcher/spans"
	"github.com/lacuna-snapshotter/lacuna/snapshot/snapshottest"
)

// publish puts the index of an image's first layer into its repository, as lacunactl
// index push does. It returns the image's manifest.
func publish(t *testing.T, i *snapshottest.Image, o spans.BuildOptions) digest.Digest {
	t.Helper()
	all := makeIndex(t, i.Layers[0], o)
	return publishAs(t, i, all)
}

func makeIndex(t *testing.T, packed []byte, o spans.BuildOptions) []byte {
	t.Helper()
	path := filepath.Join(t.TempDir(), "index")
	if _, _, err := index.Create(t.Context(), bytes.NewReader(packed), path, o, index.Expect{}); err != nil {
		t.Fatal(err)
	}
	all, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// forge makes an index that is of an image's layer by its own word, and of the same
// bootstrap, and promises other bytes.
func forge(t *testing.T, i *snapshottest.Image) []byte {
	t.Helper()
	tar := bytes.Clone(i.Tars[0])
	tar[bytes.Index(tar, i.File(t, "dir0/file1"))] ^= 1
	all := makeIndex(t, layertest.Gzip(t, tar), spans.BuildOptions{})
	enc, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	dec, err := zstd.NewReader(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer dec.Close()
	field := func(n int) []byte { return all[8+4*n : 12+4*n] } // see package index
	size := int64(binary.LittleEndian.Uint32(field(0)))
	at := 28 + int64(binary.LittleEndian.Uint32(field(2)))
	m, err := dec.DecodeAll(all[at:size], nil)
	if err != nil {
		t.Fatal(err)
	}
	layer := sha256.Sum256(i.Layers[0])
	packed := enc.EncodeAll(append(layer[:], m[len(layer):]...), nil)
	binary.LittleEndian.PutUint32(field(0), uint32(at)+uint32(len(packed)))
	binary.LittleEndian.PutUint32(field(4), uint32(len(packed)))
	return slices.Concat(all[:at], packed, all[size:])
}

// publishAs is publish with an index that is made already.
func publishAs(t *testing.T, i *snapshottest.Image, all []byte) digest.Digest {
	t.Helper()
	manifest := digest.FromString("the manifest")
	head, err := index.DecodeHead(all)
	if err != nil {
		t.Fatal(err)
	}
	m := v1.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: v1.MediaTypeImageManifest, ArtifactType: index.ArtifactType,
		Config: v1.DescriptorEmptyJSON, Subject: &v1.Descriptor{Digest: manifest},
		Layers: []v1.Descriptor{{
			MediaType: index.LayerType, Digest: i.Reg.AddBlob(all), Size: int64(len(all)),
			Annotations: map[string]string{
				"io.lacuna.index.layer":       digest.FromBytes(i.Layers[0]).String(),
				"io.lacuna.index.head.size":   strconv.FormatInt(head.Size, 10),
				"io.lacuna.index.head.digest": digest.FromBytes(all[:head.Size]).String(),
			},
		}},
	}
	body, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	list, err := json.Marshal(v1.Index{Versioned: specs.Versioned{SchemaVersion: 2}, Manifests: []v1.Descriptor{{
		MediaType: v1.MediaTypeImageManifest, ArtifactType: index.ArtifactType, Digest: i.Reg.AddManifest("index", body), Size: int64(len(body)),
	}}})
	if err != nil {
		t.Fatal(err)
	}
	i.Reg.AddReferrers(manifest, list)
	return manifest
}

// TestDamagedOwnIndex damages the index in a mounted layer's directory. Its readers
// go on with another index of the same layout, as soon as there is one.
func TestDamagedOwnIndex(t *testing.T) {
	snapshottest.NeedFanotify(t)
	cut := func(path string) error { return os.Truncate(path, 100) }
	away := func(img *snapshottest.Image) {
		for range 1000 {
			img.Reg.Fail(registrytest.Status(503, ""))
		}
	}
	for name, c := range map[string]struct {
		damage    func(path string) error
		published *spans.BuildOptions // how the index in the repository is made
		forged    bool                // the index in the repository promises other bytes
		stored    bool                // the node's store has another one
		shared    bool                // the node's store has the damaged one as well
		both      bool                // the other one in the node's store is damaged, too
		before    func(img *snapshottest.Image)
		fails     bool // then readers get EIO, until
		after     func(img *snapshottest.Image)
	}{
		"in the store":          {damage: cut, stored: true},
		"in the repository":     {damage: cut, published: &spans.BuildOptions{}},
		"missing":               {damage: os.Remove, published: &spans.BuildOptions{}},
		"without its windows":   {damage: loseWindows, published: &spans.BuildOptions{}},
		"shared with the store": {damage: loseWindows, published: &spans.BuildOptions{}, shared: true},
		"twice":                 {damage: loseWindows, published: &spans.BuildOptions{}, stored: true, both: true},
		"of another layout":     {damage: cut, published: &spans.BuildOptions{SpanSize: 8 << 10}, fails: true},
		"of other bytes":        {damage: cut, forged: true, fails: true},
		"nowhere":               {damage: loseWindows, fails: true},
		"registry away": {
			damage: cut, published: &spans.BuildOptions{}, before: away, fails: true,
			after: func(img *snapshottest.Image) { img.Reg.ClearFaults() },
		},
	} {
		t.Run(name, func(t *testing.T) {
			n := snapshottest.New(t, t.TempDir())
			t.Cleanup(func() { _ = n.TearDown() })
			img := snapshottest.NewImage(t, 1)
			img.Index(t, n, 0)
			if c.published != nil {
				publish(t, img, *c.published)
			}
			if c.forged {
				publishAs(t, img, forge(t, img))
			}
			d := digest.FromBytes(img.Layers[0])
			labels := snapshots.WithLabels(map[string]string{
				snapshots.LabelSnapshotRef:             "chain0",
				snapshotters.TargetRefLabel:            img.Reg.Ref("latest"),
				snapshotters.TargetManifestDigestLabel: digest.FromString("the manifest").String(),
				snapshotters.TargetLayerDigestLabel:    d.String(),
			})
			if _, err := n.Prepare(t.Context(), "k", "", labels); !errdefs.IsAlreadyExists(err) {
				t.Fatal(err)
			}
			l := look(t, n, img.Layers[0])
			own, err := index.OpenStore(l.Files().Dir())
			if err == nil {
				err = c.damage(own.Path(d))
			}
			if err == nil && !c.shared { // the store's is the same file
				err = n.Store.Remove(d)
			}
			if err != nil {
				t.Fatal(err)
			}
			if c.stored {
				img.Index(t, n, 0)
			}
			if c.both {
				if err := c.damage(n.Store.Path(d)); err != nil {
					t.Fatal(err)
				}
			}
			if c.before != nil {
				c.before(img)
			}
			if c.fails {
				target := n.Mountpoint(t, img.Layers[0])
				file := strings.Fields(string(snapshottest.MustRun(t, "find", target, "-type", "f", "-size", "+40k")))[0]
				if out, err := exec.Command("cat", file).CombinedOutput(); err == nil || !strings.Contains(string(out), "Input/output error") {
					t.Errorf("a reader without an index: %v %.100q", err, out)
				}
				if err := l.Blob().Fill(t.Context(), l.Blob().Size()-1, 1); err == nil || !strings.Contains(err.Error(), "no other index") {
					t.Error("the reason:", err)
				}
				if c.after != nil {
					c.after(img)
				} else {
					img.Index(t, n, 0)
				}
			}
			img.ReadsRight(t, n)
			if err := l.Blob().Fill(t.Context(), 0, l.Blob().Size()); err != nil {
				t.Error(err)
			}
			if head, err := own.Head(d); err != nil || l.Files().Fits(head) != nil {
				t.Error("the layer's index is still damaged:", err)
			}
		})
	}
}

// loseWindows damages all of an index but its head.
func loseWindows(path string) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	h, err := index.DecodeHead(b)
	if err != nil {
		return err
	}
	clear(b[h.Size:])
	return os.WriteFile(path, b, 0o600)
}

// TestIndexIsReadOnce: fetches side by side read the index once, one that gives up
// leaves it to the others, and what was read is closed when the last of them is over.
func TestIndexIsReadOnce(t *testing.T) {
	snapshottest.NeedFanotify(t)
	n := snapshottest.New(t, t.TempDir())
	t.Cleanup(func() { _ = n.TearDown() })
	img := snapshottest.LazyImage(t, n)
	s := look(t, n, img.Layers[0]).Source()
	if _, _, ok := s.Grow(0, 1, true); ok {
		t.Error("advice before the index was read")
	}
	s.BeginReading()
	stuck := make(chan error, 1)
	go func() { stuck <- s.Open(t.Context()) }()
	if _, _, ok := s.Grow(0, 1, true); ok {
		t.Error("advice while the index is read")
	}
	s.Drop() // does not wait either
	s.EndReading()
	if err := <-stuck; err != nil {
		t.Fatal(err)
	}
	l := s.Use()
	if _, _, ok := s.Grow(0, 1, true); !ok {
		t.Error("no advice")
	}
	s.Drop()
	if err := l.Fetch(t.Context(), 0, 1, func(int64, []byte) error { return nil }); err != nil {
		t.Error("a fetch that began before:", err)
	}
	l.Done()
}
