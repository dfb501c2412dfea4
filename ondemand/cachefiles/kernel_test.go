package cachefiles

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lacuna-snapshotter/lacuna/erofs"
	"github.com/lacuna-snapshotter/lacuna/fetcher/layertest"
	"github.com/lacuna-snapshotter/lacuna/internal/hostcheck"
	"github.com/lacuna-snapshotter/lacuna/ondemand"
	"github.com/lacuna-snapshotter/lacuna/ondemand/transporttest"
)

// These tests need a kernel with the on-demand options. Distributions' have
// none: integration/vm runs this very binary on kernels that were made to.

func needKernel(t *testing.T) {
	t.Helper()
	hostcheck.Root(t)
	if _, err := os.Stat(Path); err != nil {
		if os.Getenv("LACUNA_VM") != "" {
			t.Fatal("the VM's kernel has no " + Path)
		}
		t.Skip("this kernel has no cachefiles: make vm-test runs this test")
	}
}

func testLog(t *testing.T) *slog.Logger {
	return slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelWarn}))
}

// bound opens the device. The kernel takes a moment to release a cache that was just
// closed.
func bound(t *testing.T, c Config) *os.File {
	t.Helper()
	var dev *os.File
	var err error
	for range 200 {
		if dev, err = Open(c); !errors.Is(err, unix.EBUSY) {
			break
		}
		time.Sleep(20 * time.Millisecond)
	}
	if err != nil {
		t.Fatal(err)
	}
	return dev
}

func TestConformance(t *testing.T) {
	needKernel(t)
	transporttest.Run(t, transporttest.Kind{
		New: func(t *testing.T, dir string, engine *ondemand.Engine) ondemand.Transport {
			cache := filepath.Join(dir, "cache")
			s, err := Serve(bound(t, Config{Dir: cache, Tag: "test"}), Options{Dir: cache, Engine: engine, Log: testLog(t)})
			if err != nil {
				t.Fatal(err)
			}
			s.Recover()
			return s
		},
	})
}

// TestDriver needs a kernel that restores requests: the reader is left to the next
// daemon.
func TestDriver(t *testing.T) {
	needKernel(t)
	dev := bound(t, Config{Dir: t.TempDir(), Tag: "test"})
	restores := Restores(dev)
	dev.Close()
	if !restores {
		t.Skip("this kernel cannot restore requests")
	}
	transporttest.RunDriver(t, func(dir string) ondemand.Driver {
		return patient{Driver{Config{Dir: filepath.Join(dir, "cache"), Tag: "test"}}}
	})
}

// patient is the driver where the device may just have been closed.
type patient struct{ Driver }

func (p patient) Open(n ondemand.Node) (ondemand.Transport, []syscall.Conn, error) {
	for {
		t, files, err := p.Driver.Open(n)
		if !errors.Is(err, unix.EBUSY) {
			return t, files, err
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// node is a server with its cache, and layers mounted through it.
type node struct {
	t      *testing.T
	dir    string
	cache  string
	engine *ondemand.Engine
	server *Server

	mu    sync.Mutex
	reads []message
}

func newNode(t *testing.T, cache string, limits Limits) *node {
	t.Helper()
	n := &node{t: t, dir: t.TempDir(), cache: cache}
	if cache == "" {
		n.cache = filepath.Join(n.dir, "cache")
	}
	var err error
	if n.engine, err = ondemand.New(ondemand.Options{}); err != nil {
		t.Fatal(err)
	}
	d, err := newDevice(bound(t, Config{Dir: n.cache, Tag: "test", Limits: limits}))
	if err != nil {
		t.Fatal(err)
	}
	n.server = newServer(d, Options{Dir: n.cache, Engine: n.engine, Log: testLog(t)})
	n.server.seen = func(m message) {
		n.mu.Lock()
		defer n.mu.Unlock()
		if m.op == opRead {
			n.reads = append(n.reads, m)
		}
	}
	n.server.start()
	n.server.Recover()
	t.Cleanup(func() {
		// CLOSE has come for every object by the time its mount is gone.
		for range 500 {
			n.server.mu.Lock()
			open := len(n.server.objects)
			n.server.mu.Unlock()
			if open == 0 {
				break
			}
			time.Sleep(20 * time.Millisecond)
		}
		if open := len(n.server.objects); open != 0 {
			t.Errorf("%d objects are open after the last unmount", open)
		}
		if err := n.server.Close(); err != nil {
			t.Error(err)
		}
	})
	return n
}

// image is a layer's file system.
type image struct {
	bootstrap []byte
	data      []byte
	files     map[string][]byte
}

func newImage(t testing.TB, tar []byte) *image {
	t.Helper()
	im := &image{files: map[string][]byte{}}
	tree, err := erofs.ReadTar(t.Context(), bytes.NewReader(tar), erofs.Options{Data: func(e erofs.Extent, r io.Reader) error {
		b, err := io.ReadAll(r)
		im.data = append(append(im.data, make([]byte, e.Blob-int64(len(im.data)))...), b...)
		return err
	}})
	if err != nil {
		t.Fatal(err)
	}
	im.data = append(im.data, make([]byte, tree.BlobSize-int64(len(im.data)))...)
	if im.bootstrap, err = tree.Encode(); err != nil {
		t.Fatal(err)
	}
	m, err := erofs.Open(im.bootstrap)
	if err != nil {
		t.Fatal(err)
	}
	err = m.Walk(func(path string, info *erofs.FileInfo) error {
		if info.Mode&erofs.ModeType == erofs.ModeRegular && len(info.Chunks) > 0 {
			at := int64(info.Chunks[0]) * erofs.BlockSize
			im.files[path] = im.data[at : at+info.Size]
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return im
}

const testSpan = 64 << 10

// memory is an image's data as a source.
type memory struct {
	mu      sync.Mutex
	data    []byte
	fetched int
}

func (m *memory) Fetch(_ context.Context, first, last int64, put func(int64, []byte) error) error {
	m.mu.Lock()
	m.fetched += int(last - first)
	m.mu.Unlock()
	for i := first; i < last; i++ {
		if err := put(i, m.data[i*testSpan:min((i+1)*testSpan, int64(len(m.data)))]); err != nil {
			return err
		}
	}
	return nil
}

func (m *memory) spans() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.fetched
}

// mounted is an image on a node.
type mounted struct {
	n      *node
	image  *image
	source *memory
	blob   *ondemand.Blob
	target string
	boot   string
}

// attach makes an image known.
func (n *node) attach(name string, im *image) *mounted {
	n.t.Helper()
	m := &mounted{n: n, image: im, source: &memory{data: im.data}, target: filepath.Join(n.dir, name), boot: filepath.Join(n.dir, name+".bootstrap")}
	if err := os.WriteFile(m.boot, im.bootstrap, 0o600); err != nil {
		n.t.Fatal(err)
	}
	key := ondemand.Key{Volume: "test", Cookie: name}
	st, err := n.server.Backing(key, int64(len(im.data)), testSpan)
	if err != nil {
		n.t.Fatal(err)
	}
	m.blob, err = n.engine.Open(ondemand.BlobConfig{Key: key, Size: int64(len(im.data)), SpanSize: testSpan, Source: m.source, Backing: st})
	if err != nil {
		n.t.Fatal(err)
	}
	if err := n.server.Attach(m.blob, m.boot); err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(func() {
		err := n.server.Detach(m.blob)
		for late := time.Now().Add(time.Minute); errors.Is(err, ondemand.ErrBusy) && time.Now().Before(late); {
			err = n.server.Detach(m.blob) // which waits a moment
		}
		if err := errors.Join(err, m.blob.Close()); err != nil {
			n.t.Error(err)
		}
	})
	return m
}

func (m *mounted) mount() error {
	if err := os.MkdirAll(m.target, 0o755); err != nil {
		return err
	}
	return m.n.server.Mount(m.blob, m.boot, m.target)
}

func (m *mounted) unmount() {
	m.n.t.Helper()
	if err := erofs.Unmount(m.target); err != nil {
		m.n.t.Error(err)
	}
}

// check reads every file in another process.
func (m *mounted) check() error {
	for path, want := range m.image.files {
		got, err := exec.Command("cat", filepath.Join(m.target, path)).Output()
		if err != nil || !bytes.Equal(got, want) {
			return fmt.Errorf("%s: %d bytes of %d, or wrong: %w", path, len(got), len(want), err)
		}
	}
	return nil
}

// TestReadSizes prints how large the kernel's requests are for a sequential
// read, which one chunk index for each file makes large.
func TestReadSizes(t *testing.T) {
	needKernel(t)
	n := newNode(t, "", Limits{})
	big := bytes.Repeat([]byte("0123456789abcdef"), 16<<20/16)
	m := n.attach("big", newImage(t, layertest.TarOf(t, "big", big)))
	if err := m.mount(); err != nil {
		t.Fatal(err)
	}
	defer m.unmount()
	if err := m.check(); err != nil {
		t.Error(err)
	}
	var sizes []int64
	n.mu.Lock()
	for _, r := range n.reads {
		if r.n > erofs.BlockSize || r.off > int64(len(m.image.bootstrap)) {
			sizes = append(sizes, r.n)
		}
	}
	n.mu.Unlock()
	slices.Sort(sizes)
	if len(sizes) == 0 {
		t.Fatal("no READ of data")
	}
	median := sizes[len(sizes)/2]
	t.Logf("sequential read of %d MiB: %d READs, median %d KiB, largest %d KiB", len(big)>>20, len(sizes), median>>10, sizes[len(sizes)-1]>>10)
	if median < 64<<10 {
		t.Errorf("median READ of %d bytes", median)
	}
}

// TestFilledAheadIsNotAskedFor fills a layer before anybody reads it.
func TestFilledAheadIsNotAskedFor(t *testing.T) {
	needKernel(t)
	n := newNode(t, "", Limits{})
	m := n.attach("ahead", newImage(t, layertest.Tar(t, 60, 3)))
	if err := m.mount(); err != nil {
		t.Fatal(err)
	}
	defer m.unmount()
	if err := m.blob.FillAhead(t.Context(), 0, m.blob.Size()); err != nil {
		t.Fatal(err)
	}
	if !m.blob.Complete() {
		t.Error("not complete")
	}
	n.mu.Lock()
	before := len(n.reads)
	n.mu.Unlock()
	if err := m.check(); err != nil {
		t.Error(err)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, r := range n.reads[before:] {
		if r.off+r.n > FileSpan { // the bootstrap's may come yet
			t.Errorf("%s", r)
		}
	}
	if n, err := m.blob.Allocated(); err != nil || n < m.blob.Size()/2 {
		t.Logf("allocated %d of %d: %v (a cache file shows when it is committed)", n, m.blob.Size(), err)
	}
}

// TestThousandLayers mounts 1,000 layers, many at once, reads a file of each,
// and unmounts them.
func TestThousandLayers(t *testing.T) {
	needKernel(t)
	n := newNode(t, "", Limits{})
	const layers = 1000
	im := newImage(t, layertest.Tar(t, 3, 4))
	began := time.Now()
	work := make(chan *mounted)
	var wg sync.WaitGroup
	for range 16 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for m := range work {
				if err := m.mount(); err != nil {
					t.Error(err)
				}
			}
		}()
	}
	list := make([]*mounted, layers)
	for i := range list {
		list[i] = n.attach(fmt.Sprintf("layer%d", i), im)
		work <- list[i]
	}
	close(work)
	wg.Wait()
	t.Logf("%d mounts in %s", layers, time.Since(began).Round(time.Second))
	paths := ""
	for path := range im.files {
		paths = path
		break
	}
	out, err := exec.Command("sh", "-c", "cd "+n.dir+" && cat layer[0-9]*/"+paths+" | wc -c").Output()
	if err != nil || strings.TrimSpace(string(out)) != fmt.Sprint(layers*len(im.files[paths])) {
		t.Errorf("%s bytes: %v", out, err)
	}
	for _, m := range list {
		m.unmount()
	}
}

// TestCulling fills a small file system's cache until the kernel asks for room,
// sees cold layers go, and mounts one of them again.
func TestCulling(t *testing.T) {
	needKernel(t)
	dir := t.TempDir()
	disk, target := filepath.Join(dir, "disk"), filepath.Join(dir, "fs")
	for _, command := range []string{
		"truncate -s 64M " + disk, "mke2fs -q -t ext4 -m 0 " + disk, "mkdir " + target, "mount -o loop " + disk + " " + target,
	} {
		if out, err := exec.Command("sh", "-c", command).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", command, err, out)
		}
	}
	t.Cleanup(func() {
		var err error
		for range 600 { // the kernel lets go of the cache a little later
			if err = unix.Unmount(target, 0); err == nil {
				return
			}
			time.Sleep(50 * time.Millisecond)
		}
		t.Error("the cache's file system is still in use:", err)
	})
	n := newNode(t, filepath.Join(target, "cache"), Limits{BRun: 60, BCull: 50, BStop: 5, FRun: 7, FCull: 5, FStop: 1})
	var layers []*mounted
	for i := range 8 { // of 8 MiB each: 64 in all
		m := n.attach(fmt.Sprintf("cold%d", i), newImage(t, layertest.TarOf(t, "big", bytes.Repeat([]byte{byte(i + 1)}, 8<<20))))
		layers = append(layers, m)
		if err := m.mount(); err != nil {
			t.Fatal(err)
		}
		if err := m.check(); err != nil {
			t.Fatalf("layer %d: %v", i, err)
		}
		m.unmount()
		time.Sleep(200 * time.Millisecond) // for the object's end, and the culling
	}
	first := layers[0]
	before := first.source.spans()
	if err := first.mount(); err != nil {
		t.Fatal(err)
	}
	defer first.unmount()
	if err := first.check(); err != nil {
		t.Fatal(err)
	}
	if again := first.source.spans() - before; again == 0 {
		t.Error("the coldest layer was not culled")
	} else {
		t.Logf("the coldest layer was culled: %d spans were fetched again", again)
	}
}

// TestRemove frees what the kernel keeps of a layer.
func TestRemove(t *testing.T) {
	needKernel(t)
	n := newNode(t, "", Limits{})
	m := n.attach("gone", newImage(t, layertest.Tar(t, 30, 5)))
	if err := m.mount(); err != nil {
		t.Fatal(err)
	}
	if err := m.check(); err != nil {
		t.Fatal(err)
	}
	m.unmount()
	key := m.blob.Key()
	for range 500 { // it is linked when the kernel commits it
		if n.server.cacheFile(key) != "" {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	if n.server.cacheFile(key) == "" {
		t.Fatal("there is no cache file to remove")
	}
	if err := n.server.Remove(key); err != nil {
		t.Fatal(err)
	}
	if path := n.server.cacheFile(key); path != "" {
		t.Errorf("%s is still there", path)
	}
	if err := n.server.Remove(key); err != nil {
		t.Errorf("twice: %v", err)
	}
}

// TestDeviceIsTaken says who has it.
func TestDeviceIsTaken(t *testing.T) {
	needKernel(t)
	dir := t.TempDir()
	dev := bound(t, Config{Dir: filepath.Join(dir, "a")})
	defer dev.Close()
	_, err := Open(Config{Dir: filepath.Join(dir, "b")})
	if !errors.Is(err, unix.EBUSY) || !strings.Contains(err.Error(), fmt.Sprintf("process %d", os.Getpid())) {
		t.Errorf("got %v", err)
	}
}
