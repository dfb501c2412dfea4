// Package transporttest is the conformance suite of ondemand.Transport: every
// implementation passes the same tests, on the kernel, with EROFS mounts and
// readers in other processes.
package transporttest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

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
	// Survives says that the mounts of complete blobs need no daemon.
	Survives bool
	// Revives says that a mount which was not served for a while must be
	// served again, and not replaced.
	Revives bool
}

const spanSize = 16 << 10

// Run runs the suite.
func Run(t *testing.T, k Kind) {
	hostcheck.Root(t)
	for name, test := range map[string]func(*testing.T, *fixture){
		"every byte is right":       everyByte,
		"many readers one fetch":    manyReaders,
		"mapped and executed":       execute,
		"failure is EIO then right": failure,
		"released reads are native": release,
		"restart with filled spans": restart,
		"not served for a while":    unserved,
		"close answers all":         closing,
		"detach is idempotent":      detached,
		"no detach while in use":    inUse,
		"many blobs":                manyBlobs,
	} {
		t.Run(name, func(t *testing.T) { test(t, newFixture(t, k)) })
	}
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
	if err := errors.Join(l.blob.Fill(t.Context(), 0, l.blob.Size()), l.blob.Sync()); err != nil || !l.blob.Durable() {
		t.Fatal(l.blob.Durable(), err)
	}
	if err := ondemand.Release(f.transport, l.blob); err != nil {
		t.Fatal(err)
	}
	if f.kind.Survives {
		f.close() // the reads need no daemon
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
	l.detach()
	if err := l.blob.Close(); err != nil {
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

// unserved has a mount read while no process serves it. What the reader gets depends on
// the kernel; after the next start it gets the right bytes.
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
		t.Fatal("right bytes, which no process can have brought")
	}
	f.start()
	l.open()
	err := ondemand.Revive(f.transport, l.blob)
	if err != nil && f.kind.Revives {
		t.Fatal(err)
	}
	if err != nil {
		l.unmount()
		l.mount()
	}
	l.checkAll()
}

// closing leaves a reader to the holders of the kernel's side: it may get an error or
// wait on, but never bytes that were not filled.
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
	l.unmount()
	l.detach()
	if err := f.transport.Detach(l.blob); err != nil {
		t.Errorf("twice: %v", err)
	}
	if f.transport.Needed() {
		t.Error("the transport is needed, though all is detached")
	}
}

// inUse has an overlay outlive the layer's mountpoint: only the kernel knows of its
// clone of the mount.
func inUse(t *testing.T, f *fixture) {
	l := f.layer("a", 60, 10)
	empty, overlay := t.TempDir(), t.TempDir()
	if err := unix.Mount("overlay", overlay, "overlay", 0, "lowerdir="+l.target+":"+empty); err != nil {
		t.Fatal(err)
	}
	unmount := sync.OnceValue(func() error { return unix.Unmount(overlay, 0) })
	t.Cleanup(func() {
		if err := unmount(); err != nil {
			t.Error(err)
		}
	})
	busy := func(when string) {
		t.Helper()
		for range 2 {
			if err := f.transport.Detach(l.blob); !errors.Is(err, ondemand.ErrBusy) {
				t.Errorf("%s: %v", when, err)
			}
		}
		if !f.transport.Needed() {
			t.Error(when + ": the transport is not needed")
		}
	}
	busy("mounted")
	if _, err := l.read(l.largest()); err != nil {
		t.Fatal(err)
	}
	l.unmount()
	busy("unmounted")
	l.checkBelow(overlay)
	if err := l.blob.Fill(t.Context(), 0, l.blob.Size()); err != nil {
		t.Fatal(err)
	}
	// Its reads may be the kernel's own now, or it stays attached.
	if err := f.transport.Detach(l.blob); err != nil && !errors.Is(err, ondemand.ErrBusy) {
		t.Error(err)
	}
	for path := range l.files {
		file := filepath.Join(overlay, path)
		if out, err := run(exec.CommandContext(t.Context(), "dd", "if="+file, "iflag=nocache", "count=0", "status=none")); err != nil {
			t.Fatal(string(out), err)
		}
	}
	l.checkBelow(overlay)
	if err := unmount(); err != nil {
		t.Fatal(err)
	}
	l.detach()
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
