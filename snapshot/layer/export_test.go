package layer

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/lacuna-snapshotter/lacuna/fetcher/index"
	"github.com/lacuna-snapshotter/lacuna/ondemand"
)

// What the tests of package layer_test see of a layer, and do to one.

const UnservedFile = unservedFile

var ErrStopping = errStopping

func (l *Set) All() []digest.Digest                    { return l.all() }
func (l *Set) Look(d digest.Digest) (Layer, bool)      { return l.view(d) }
func (l *Set) EvictOnce() error                        { return l.evictOver(context.Background()) }
func (l *Set) Over() bool                              { return l.over.Load() }
func (l *Set) StartBackfill()                          { l.start(l.backfill) }
func (l *Set) Name(mountpoint string, d digest.Digest) { l.mountpoints[mountpoint] = d }

func (layer Layer) State() State             { return layer.state }
func (layer Layer) Files() *Files            { return &Files{layer.files} }
func (layer Layer) RetryWait() time.Duration { return layer.retry.wait }

// Blob is nil where the layer's is not open.
func (layer Layer) Blob() *ondemand.Blob {
	if layer.serving == nil {
		return nil
	}
	return layer.serving.blob
}

type Files struct{ *files }

func (f *Files) Dir() string             { return f.dir }
func (f *Files) Target() string          { return f.target }
func (f *Files) Path(name string) string { return f.path(name) }
func (f *Files) Image() Target           { return f.image() }

// WriteLayer writes a layer's directory with an index that cannot be read.
func WriteLayer(root string, d digest.Digest, ref string, bootstrap []byte, blobSize int64) error {
	s := layerState{
		Version: stateVersion, Layer: d, Bootstrap: digest.FromBytes(bootstrap), Mountpoint: d.Encoded()[:12], Ref: ref,
		BlobSize: blobSize, SpanSize: 64 << 10,
	}
	state, err := json.Marshal(s)
	if err != nil {
		return err
	}
	dir := s.at(root).dir
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	for name, b := range map[string][]byte{"bootstrap": bootstrap, "layer.json": state, "sha256-" + d.Encoded() + ".index": nil} {
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
			return err
		}
	}
	return nil
}

// Fits reports what makes an index unfit for the layer.
func (f *Files) Fits(h *index.Head) error { return f.fits(h) }

// Source is where the layer's spans come from.
func (layer Layer) Source() *Source { return &Source{layer.serving.source} }

type Source struct{ *layerSource }

// BeginReading is what a fetch does that reads the index, until EndReading.
func (s *Source) BeginReading() { <-s.reading }
func (s *Source) EndReading()   { s.reading <- struct{}{} }
func (s *Source) Drop()         { s.drop() }

// Use is what a fetch uses, until Done.
func (s *Source) Use() *InUse { return &InUse{s.use()} }

type InUse struct{ *openIndex }

func (u *InUse) Done() { u.fetches.Done() }
