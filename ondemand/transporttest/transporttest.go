// Package transporttest is the conformance suite of ondemand.Transport: every
// implementation passes the same tests, on the kernel, with EROFS mounts and
// readers in other processes.
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
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/lacuna-snapshotter/lacuna/erofs"
	"github.com/lacuna-snapshotter/lacuna/fetcher/layertest"
	"github.com/lacuna-snapshotter/lacuna/internal/hostcheck"
	"github.com/lacuna-snapshotter/lacuna/ondemand"
)

// Kind is one implementation.
type Kind struct {
	// New starts the transport for blobs in dir.
	New func(t *testing.T, dir string, engine *ondemand.Engine) ondemand.Transport
	// Die, if there, ends whatever else holds the kernel's side of a transport
	// that was closed.
	Die func()
	// Survives says that the mounts of complete blobs need nobody.
	Survives bool
	// Revives says that a mount which nobody has served for a while must be
	// served again, and not replaced.
	Revives bool
}

const spanSize = 16 << 10

// Run runs the suite.
func Run(t *testing.T, k Kind) {
	hostcheck.Root(t)
	for name, test := range map[string]func(*testing.T, *fixture){
		"every byte is right":        everyByte,
		"many readers one fetch":     manyReaders,
		"mapped and executed":        execute,
		"failure is EIO then mended": failure,
		"released reads are native":  release,
		"restart with filled spans":  restart,
		"not served for a while":     unserved,
		"close answers all":          closing,
		"detach is idempotent":       detached,
		"many blobs":                 manyBlobs,
	} {
		t.Run(name, func(t *testing.T) { test(t, newFixture(t, k)) })
	}
}

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
		l.unmount()
		if err := l.blob.Close(); err != nil {
			f.t.Error(err)
		}
	})
	return l
}

func (l *layer) open() {
	l.f.t.Helper()
	key, size := ondemand.Key{Volume: "test", Cookie: l.name}, int64(len(l.source.data))
	store, err := l.f.transport.Store(key, size, spanSize)
	if err != nil {
		l.f.t.Fatal(err)
	}
	b, err := l.f.engine.Open(ondemand.BlobConfig{
		Key: key, Path: filepath.Join(l.f.dir, l.name+".blob"),
		Size: size, SpanSize: spanSize, Source: l.source, Store: store,
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
}

func (l *layer) unmount() {
	if err := erofs.Unmount(l.target); err != nil {
		l.f.t.Error(err)
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
	for path, want := range l.files {
		if got, err := l.read(path); err != nil || !bytes.Equal(got, want) {
			l.f.t.Fatalf("%s: %d bytes of %d, or wrong: %v", path, len(got), len(want), err)
		}
	}
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

func (s *source) Grow(first, last int64, _ bool) (int64, int64) { return first, last }

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

func everyByte(t *testing.T, f *fixture) {
	l := f.layer("a", 120, 1)
	l.checkAll()
	out, err := run(exec.CommandContext(t.Context(), "sh", "-c", "cd "+l.target+" && find . -type f | wc -l"))
	if err != nil || strings.TrimSpace(string(out)) != fmt.Sprint(len(l.files)) {
		t.Errorf("find: %s, %v", out, err)
	}
	if n, all := l.source.spans.Load(), int64(len(l.source.data)+spanSize-1)/spanSize; n > all {
		t.Errorf("%d spans brought, the blob has %d", n, all)
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

func manyReaders(t *testing.T, f *fixture) {
	l := f.layer("a", 60, 2)
	gate := make(chan struct{})
	l.source.block.Store(&gate)
	path := l.largest()
	var wg sync.WaitGroup
	for range 12 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			if got, err := l.read(path); err != nil || !bytes.Equal(got, l.files[path]) {
				t.Errorf("wrong bytes: %v", err)
			}
		}()
	}
	for l.source.fetches.Load() == 0 {
		time.Sleep(time.Millisecond)
	}
	close(gate)
	wg.Wait()
	if n, all := l.source.spans.Load(), int64(len(l.files[path])/spanSize+2+128<<10/spanSize); n > all {
		t.Errorf("%d spans for a file of %d", n, all)
	}
}

// execute runs a program from the mount: the kernel maps it and faults its
// pages in.
func execute(t *testing.T, f *fixture) {
	program, err := os.ReadFile(hostcheck.Tool(t, "bash"))
	if err != nil {
		t.Fatal(err)
	}
	l := f.layerOf("a", layertest.TarOf(t, "bin/bash", program))
	// Through a shell: in our own fork the exec would wait for this process,
	// whose runtime cannot stop the world between fork and exec.
	out, err := run(exec.CommandContext(t.Context(), "sh", "-c", filepath.Join(l.target, "bin/bash")+" -c 'echo $((6 * 7))'"))
	if err != nil || string(out) != "42\n" {
		t.Errorf("%q, %v", out, err)
	}
	l.checkAll()
}

func failure(t *testing.T, f *fixture) {
	l := f.layer("a", 40, 4)
	path := l.largest()
	l.source.fail.Store(true)
	for range 3 {
		out, err := l.read(path)
		if err == nil || !strings.Contains(err.Error(), "Input/output error") {
			t.Fatalf("%d bytes, %v", len(out), err)
		}
		if !bytes.HasPrefix(l.files[path], out) {
			t.Fatal("wrong bytes before the error")
		}
	}
	l.source.fail.Store(false)
	l.checkAll()
}

func release(t *testing.T, f *fixture) {
	l := f.layer("a", 60, 5)
	if err := l.blob.Fill(t.Context(), 0, l.blob.Size()); err != nil {
		t.Fatal(err)
	}
	if err := f.transport.Release(l.blob); err != nil {
		t.Fatal(err)
	}
	if f.kind.Survives {
		f.close() // the reads need nobody
	}
	l.source.fail.Store(true)
	l.checkAll()
}

func restart(t *testing.T, f *fixture) {
	l := f.layer("a", 60, 6)
	path := l.largest()
	if _, err := l.read(path); err != nil {
		t.Fatal(err)
	}
	l.unmount()
	if err := errors.Join(f.transport.Detach(l.blob), l.blob.Close()); err != nil {
		t.Fatal(err)
	}
	before := l.source.spans.Load()
	l.open()
	l.mount()
	if got, err := l.read(path); err != nil || !bytes.Equal(got, l.files[path]) {
		t.Fatal("wrong bytes", err)
	}
	if n := l.source.spans.Load() - before; n > 128<<10/spanSize {
		t.Errorf("%d spans were brought again", n)
	}
	l.checkAll()
}

// unserved has a mount read while nobody is there. What comes of that is the
// kernel's; after the next start it is over.
func unserved(t *testing.T, f *fixture) {
	l := f.layer("a", 60, 9)
	path := l.largest()
	if err := errors.Join(f.transport.Close(), l.blob.Close()); err != nil {
		t.Fatal(err)
	}
	if f.kind.Die != nil {
		f.kind.Die()
	}
	if got, err := l.read(path); err == nil && bytes.Equal(got, l.files[path]) {
		t.Fatal("right bytes from nowhere")
	}
	f.start()
	l.open()
	err := f.transport.Revive(l.blob)
	if err != nil && f.kind.Revives {
		t.Fatal(err)
	}
	if err != nil {
		l.unmount()
		l.mount()
	}
	l.checkAll()
}

// closing leaves a reader to whoever holds the kernel's side after us: it may
// get an error or wait on, but never bytes that were not filled.
func closing(t *testing.T, f *fixture) {
	l := f.layer("a", 40, 7)
	gate := make(chan struct{})
	l.source.block.Store(&gate)
	path := l.largest()
	ctx, kill := context.WithCancel(t.Context())
	defer kill()
	type result struct {
		out []byte
		err error
	}
	done := make(chan result, 1)
	go func() {
		out, err := run(exec.CommandContext(ctx, "cat", filepath.Join(l.target, path)))
		done <- result{out, err}
	}()
	for l.source.fetches.Load() == 0 {
		time.Sleep(time.Millisecond)
	}
	f.close()
	select {
	case r := <-done:
		done <- r
	case <-time.After(time.Second):
	}
	kill()
	if r := <-done; r.err == nil || !bytes.HasPrefix(l.files[path], r.out) {
		t.Errorf("%d bytes, error %v", len(r.out), r.err)
	}
}

func detached(t *testing.T, f *fixture) {
	l := f.layer("a", 20, 8)
	l.checkAll()
	if err := f.transport.Detach(l.blob); err != nil {
		t.Error(err)
	}
	if err := f.transport.Detach(l.blob); err != nil {
		t.Errorf("twice: %v", err)
	}
}

func manyBlobs(t *testing.T, f *fixture) {
	var wg sync.WaitGroup
	for i := range 20 {
		l := f.layer(fmt.Sprint("l", i), 15, uint64(i))
		wg.Add(1)
		go func() {
			defer wg.Done()
			for path, want := range l.files {
				if got, err := l.read(path); err != nil || !bytes.Equal(got, want) {
					t.Errorf("layer %d: %s: %v", i, path, err)
				}
			}
		}()
	}
	wg.Wait()
}
