package fuse

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/lacuna-snapshotter/lacuna/erofs"
	"github.com/lacuna-snapshotter/lacuna/fetcher/layertest"
	"github.com/lacuna-snapshotter/lacuna/ondemand"
	"github.com/lacuna-snapshotter/lacuna/ondemand/hold/inflight"
)

// TestUnmountAboveStuckReads unmounts a file system on a loop device which reads from
// this process, and whose reader was killed. The kernel ends the file system when
// the read is answered. It has the thread that unmounts wait for that, and no signal
// ends the wait. So that thread must not be of the process that answers.
//
// Only with loop devices: EROFS reads a file that it has mounted in the reader's own
// thread, which ends the read when it is killed.
func TestUnmountAboveStuckReads(t *testing.T) {
	needFUSE(t)
	dir := t.TempDir()
	loops, err := erofs.Loops()
	if err != nil {
		t.Fatal(err)
	}
	session := filepath.Join(dir, "fuse")
	dev, err := Open(session)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unmount(session) })
	table, err := inflight.New(InFlight)
	if err != nil {
		t.Fatal(err)
	}
	s, err := Serve(dev, table, Options{Dir: session, Loop: true, ChangeLoop: erofs.ChangeLoop, Loops: loops, Log: slog.New(slog.NewTextHandler(t.Output(), nil))})
	if err != nil {
		t.Fatal(err)
	}
	s.Recover()

	image, file, size := bootstrap(t, filepath.Join(dir, "bootstrap"))
	engine, err := ondemand.New(ondemand.Options{Timeout: 10 * time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	source := &letters{stuck: true}
	b, err := engine.Open(ondemand.BlobConfig{Key: ondemand.Key{Volume: "v", Cookie: "c"}, Path: filepath.Join(dir, "blob"), Size: size, SpanSize: testSpan, Source: source})
	if err != nil {
		t.Fatal(err)
	}
	target := filepath.Join(dir, "mnt")
	if err := os.Mkdir(target, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := s.Attach(b, image); err != nil {
		t.Fatal(err)
	}
	if err := s.Mount(b, image, target); err != nil {
		t.Fatal(err)
	}
	// The fills end with the server, then all that waits for them.
	closed := false
	t.Cleanup(func() {
		if !closed {
			_ = s.Close()
		}
		_ = b.Close()
	})

	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	reader := exec.CommandContext(ctx, "cat", filepath.Join(target, file))
	if err := reader.Start(); err != nil {
		t.Fatal(err)
	}
	for source.waiting.Load() == 0 && ctx.Err() == nil {
		time.Sleep(time.Millisecond)
	}
	if err := reader.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = reader.Wait() // it was killed

	done := make(chan error, 1)
	go func() { done <- erofs.Unmount(target) }()
	select {
	case err := <-done:
		if err != nil {
			t.Error(err)
		}
	case <-ctx.Done():
		t.Error("the unmount waits for a read that this process answers")
	}
	used, err := erofs.InUse(image)
	if err != nil || !used {
		t.Errorf("the kernel has not waited for the read, so this test shows nothing: %v", err)
	}
	closed = true
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	for ; used; time.Sleep(10 * time.Millisecond) {
		if used, err = erofs.InUse(image); err != nil {
			t.Fatal(err)
		}
	}
}

// bootstrap writes a bootstrap, and returns its path, that of its longest file and the
// size of the blob.
func bootstrap(t *testing.T, path string) (image, file string, size int64) {
	t.Helper()
	tree, err := erofs.ReadTar(t.Context(), bytes.NewReader(layertest.Tar(t, 60, 7)), erofs.Options{Data: func(_ erofs.Extent, r io.Reader) error {
		_, err := io.Copy(io.Discard, r)
		return err
	}})
	if err != nil {
		t.Fatal(err)
	}
	encoded, err := tree.Encode()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, encoded, 0o600); err != nil {
		t.Fatal(err)
	}
	img, err := erofs.Open(encoded)
	if err != nil {
		t.Fatal(err)
	}
	var longest int64
	err = img.Walk(func(path string, info *erofs.FileInfo) error {
		if info.Mode&erofs.ModeType == erofs.ModeRegular && info.Size > longest {
			file, longest = path, info.Size
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return path, file, tree.BlobSize
}
