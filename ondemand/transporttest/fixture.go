package transporttest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/lacuna-snapshotter/lacuna/erofs"
	"github.com/lacuna-snapshotter/lacuna/fetcher/layertest"
	"github.com/lacuna-snapshotter/lacuna/ondemand"
)

// fixture is a running transport and a directory on the host's file system.
type fixture struct {
	t         *testing.T
	kind      Kind
	dir       string
	engine    *ondemand.Engine
	transport ondemand.Transport
	closed    bool
}

func newFixture(t *testing.T, k Kind) *fixture {
	t.Helper()
	f := &fixture{t: t, kind: k, dir: t.TempDir()}
	f.start()
	t.Cleanup(f.close)
	return f
}

// start starts an engine and a transport, as a daemon does.
func (f *fixture) start() {
	f.t.Helper()
	engine, err := ondemand.New(ondemand.Options{MaxFetch: 4 * spanSize})
	if err != nil {
		f.t.Fatal(err)
	}
	f.engine = engine
	f.transport = f.kind.New(f.t, f.dir, engine)
}

func (f *fixture) close() {
	if f.closed {
		return
	}
	f.closed = true
	if err := f.transport.Close(); err != nil {
		f.t.Error(err)
	}
}

// layer is a blob with its mount and what its files must hold.
type layer struct {
	f         *fixture
	name      string
	bootstrap string
	blob      *ondemand.Blob
	source    *source
	files     map[string][]byte
	target    string
	mounted   bool
}

// layer makes a blob of generated files, attaches and mounts it.
func (f *fixture) layer(name string, files int, seed uint64) *layer {
	f.t.Helper()
	return f.layerOf(name, layertest.Tar(f.t, files, seed))
}

func (f *fixture) layerOf(name string, tar []byte) *layer {
	f.t.Helper()
	l := &layer{f: f, name: name, bootstrap: filepath.Join(f.dir, name+".bootstrap"), files: map[string][]byte{}, target: filepath.Join(f.dir, name+".mnt")}
	l.source = &source{}
	tree, err := erofs.ReadTar(f.t.Context(), bytes.NewReader(tar), erofs.Options{Data: func(e erofs.Extent, r io.Reader) error {
		b, err := io.ReadAll(r)
		l.source.data = append(append(l.source.data, make([]byte, e.Blob-int64(len(l.source.data)))...), b...)
		return err
	}})
	if err != nil {
		f.t.Fatal(err)
	}
	l.source.data = append(l.source.data, make([]byte, tree.BlobSize-int64(len(l.source.data)))...)
	image, err := tree.Encode()
	if err != nil {
		f.t.Fatal(err)
	}
	if err := os.WriteFile(l.bootstrap, image, 0o600); err != nil {
		f.t.Fatal(err)
	}
	img, err := erofs.Open(image)
	if err != nil {
		f.t.Fatal(err)
	}
	err = img.Walk(func(path string, info *erofs.FileInfo) error {
		if info.Mode&erofs.ModeType != erofs.ModeRegular {
			return nil
		}
		var data []byte
		if len(info.Chunks) > 0 {
			at := int64(info.Chunks[0]) * erofs.BlockSize
			data = l.source.data[at : at+info.Size]
		}
		l.files[path] = data
		return nil
	})
	if err != nil {
		f.t.Fatal(err)
	}
	l.open()
	l.mount()
	f.t.Cleanup(func() {
		if l.mounted {
			l.unmount()
		}
		if err := l.blob.Close(); err != nil {
			f.t.Error(err)
		}
	})
	return l
}

func (l *layer) open() {
	l.f.t.Helper()
	key, size := ondemand.Key{Volume: "test", Cookie: l.name}, int64(len(l.source.data))
	backing, err := ondemand.NewBacking(l.f.transport, key, size, spanSize)
	if err != nil {
		l.f.t.Fatal(err)
	}
	b, err := l.f.engine.Open(ondemand.BlobConfig{
		Key: key, Path: filepath.Join(l.f.dir, l.name+".blob"),
		Size: size, SpanSize: spanSize, Source: l.source, Backing: backing,
	})
	if err != nil {
		l.f.t.Fatal(err)
	}
	l.blob = b
	if err := l.f.transport.Attach(b, l.bootstrap); err != nil {
		l.f.t.Fatal(err)
	}
}

func (l *layer) mount() {
	l.f.t.Helper()
	if err := os.MkdirAll(l.target, 0o755); err != nil {
		l.f.t.Fatal(err)
	}
	if err := l.f.transport.Mount(l.blob, l.bootstrap, l.target); err != nil {
		l.f.t.Fatal(err)
	}
	l.mounted = true
}

func (l *layer) unmount() {
	l.mounted = false
	if err := erofs.Unmount(l.target); err != nil {
		l.f.t.Error(err)
	}
}

// detach detaches a blob that nothing mounts any more. The kernel may take a moment
// to end the file system.
func (l *layer) detach() {
	l.f.t.Helper()
	err := l.f.transport.Detach(l.blob)
	for deadline := time.Now().Add(time.Minute); errors.Is(err, ondemand.ErrBusy) && time.Now().Before(deadline); err = l.f.transport.Detach(l.blob) {
		time.Sleep(10 * time.Millisecond)
	}
	if err != nil {
		l.f.t.Fatal(err)
	}
}

// read reads a file in another process.
func (l *layer) read(path string) ([]byte, error) {
	return run(exec.CommandContext(l.f.t.Context(), "cat", filepath.Join(l.target, path)))
}

func run(cmd *exec.Cmd) ([]byte, error) {
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		err = fmt.Errorf("%w: %s", err, strings.TrimSpace(stderr.String()))
	}
	return out, err
}

func (l *layer) checkAll() {
	l.f.t.Helper()
	l.checkBelow(l.target)
}

// checkBelow reads all files in another place than the layer's mountpoint.
func (l *layer) checkBelow(dir string) {
	l.f.t.Helper()
	for path, want := range l.files {
		if got, err := run(exec.CommandContext(l.f.t.Context(), "cat", filepath.Join(dir, path))); err != nil || !bytes.Equal(got, want) {
			l.f.t.Fatalf("%s: %d bytes of %d, or wrong: %v", path, len(got), len(want), err)
		}
	}
}

// largest is the path of the longest file.
func (l *layer) largest() (best string) {
	for path, data := range l.files {
		if best == "" || len(data) > len(l.files[best]) {
			best = path
		}
	}
	return best
}

// source brings spans of known data.
type source struct {
	data    []byte
	fail    atomic.Bool
	block   atomic.Pointer[chan struct{}]
	fetches atomic.Int64
	spans   atomic.Int64
}

var errSource = errors.New("the source fails")

func (s *source) Fetch(ctx context.Context, first, last int64, put func(int64, []byte) error) error {
	s.fetches.Add(1)
	if c := s.block.Load(); c != nil {
		select {
		case <-*c:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if s.fail.Load() {
		return errSource
	}
	for i := first; i < last; i++ {
		s.spans.Add(1)
		if err := put(i, s.data[i*spanSize:min((i+1)*spanSize, int64(len(s.data)))]); err != nil {
			return err
		}
	}
	return nil
}
