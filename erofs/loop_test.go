package erofs

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/lacuna-snapshotter/lacuna/fetcher/layertest"
	"github.com/lacuna-snapshotter/lacuna/internal/hostcheck"
)

// TestLoopReadsLittleAhead touches one page of a mapped file, on a mount of a blob
// that has holes: what the kernel reads with it would have to be fetched.
func TestLoopReadsLittleAhead(t *testing.T) {
	hostcheck.Root(t)
	dir := t.TempDir()
	content := bytes.Repeat([]byte("0123456789abcdef"), 8<<20/16)
	bootstrap, blob := build(t, layertest.TarOf(t, "large", content), dir)
	target := filepath.Join(dir, "mnt")
	if err := os.Mkdir(target, 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := MountLoop(bootstrap, blob, true, target); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := Unmount(target); err != nil {
			t.Error(err)
		}
	})
	f, err := os.Open(filepath.Join(target, "large"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	m, err := unix.Mmap(int(f.Fd()), 0, len(content), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := unix.Munmap(m); err != nil {
			t.Error(err)
		}
	}()
	if m[len(m)/2] != '0' {
		t.Fatal("wrong bytes")
	}
	pages := make([]byte, len(m)/os.Getpagesize())
	if _, _, errno := unix.Syscall(unix.SYS_MINCORE, uintptr(unsafe.Pointer(&m[0])), uintptr(len(m)), uintptr(unsafe.Pointer(&pages[0]))); errno != 0 {
		t.Fatal(errno)
	}
	resident := 0
	for _, p := range pages {
		resident += int(p & 1)
	}
	if resident == 0 || resident*os.Getpagesize() > readAhead {
		t.Errorf("%d pages were read with one", resident)
	}
}
