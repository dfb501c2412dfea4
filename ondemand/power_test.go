package ondemand

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/lacuna-snapshotter/lacuna/internal/hostcheck"
)

// TestPowerLossOnDisk loses power on a real file system: it copies the device
// below a mounted ext4, on which an engine fills, at random moments. The copy
// lacks what was not flushed.
func TestPowerLossOnDisk(t *testing.T) {
	hostcheck.Root(t)
	hostcheck.Tool(t, "mke2fs")
	sh := func(script string, args ...string) {
		t.Helper()
		if out, err := exec.Command("sh", append([]string{"-ec", script, "sh"}, args...)...).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", script, err, out)
		}
	}
	mount := func(disk, dir string) {
		t.Helper()
		sh(`mkdir -p "$2"; mount -o loop "$1" "$2"`, disk, dir)
		t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) }) // where the test has failed
	}
	top := t.TempDir()
	r := rand.New(rand.NewPCG(11, 12))
	lost := 0
	for round := range 12 {
		disk, copied := filepath.Join(top, "disk"), filepath.Join(top, "copied")
		sh(`rm -f "$1" "$2"; truncate -s 32M "$1"; mke2fs -q -t ext4 "$1"`, disk, copied)
		live, after := filepath.Join(top, "live"), filepath.Join(top, "after")
		mount(disk, live)
		s := newSource(256 * testSpan)
		e, err := New(Options{BootID: bootA})
		if err != nil {
			t.Fatal(err)
		}
		b, err := e.Open(BlobConfig{Key: Key{"v", "c"}, Path: filepath.Join(live, "blob"), Size: int64(len(s.data)), SpanSize: testSpan, Source: s})
		if err != nil {
			t.Fatal(err)
		}
		for range 20 + r.IntN(200) {
			if err := b.Fill(t.Context(), r.Int64N(256)*testSpan, 1); err != nil {
				t.Fatal(err)
			}
			if r.IntN(40) == 0 {
				if err := b.Sync(); err != nil {
					t.Fatal(err)
				}
			}
		}
		filled := b.backing.Count()
		sh(`cp --sparse=always "$1" "$2"`, disk, copied)
		if err := errors.Join(b.Close(), unix.Unmount(live, 0)); err != nil {
			t.Fatal(err)
		}

		mount(copied, after) // replays the journal, as after a reboot
		e2, err := New(Options{BootID: bootB})
		if err != nil {
			t.Fatal(err)
		}
		again := newSource(256 * testSpan)
		b2, err := e2.Open(BlobConfig{Key: Key{"v", "c"}, Path: filepath.Join(after, "blob"), Size: int64(len(s.data)), SpanSize: testSpan, Source: again})
		if err != nil {
			t.Fatal(err)
		}
		content, err := os.ReadFile(filepath.Join(after, "blob"))
		if err != nil {
			t.Fatal(err)
		}
		for i := range int64(256) {
			if b2.backing.Has(i) && !bytes.Equal(content[i*testSpan:(i+1)*testSpan], s.data[i*testSpan:(i+1)*testSpan]) {
				t.Fatalf("round %d: span %d counts as filled and is lost", round, i)
			}
		}
		lost += int(filled - b2.backing.Count())
		if err := b2.Fill(t.Context(), 0, int64(len(s.data))); err != nil {
			t.Fatal(err)
		}
		if content, err = os.ReadFile(filepath.Join(after, "blob")); err != nil || !bytes.Equal(content, s.data) {
			t.Fatalf("round %d: wrong bytes after filling again: %v", round, err)
		}
		if err := errors.Join(b2.Close(), unix.Unmount(after, 0)); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("%d spans were lost with the power", lost)
	if lost == 0 {
		t.Error("nothing was lost: this test tries nothing")
	}
}
