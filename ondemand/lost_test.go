package ondemand

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lacuna-snapshotter/lacuna/internal/hostcheck"
)

// fullDisk is an ext4 on a device that takes no more while it is full, as a thin
// volume: writes to the page cache succeed, and the kernel cannot bring them to
// the device.
type fullDisk struct {
	t          *testing.T
	back, live string
}

func newFullDisk(t *testing.T) *fullDisk {
	hostcheck.Root(t)
	hostcheck.Tool(t, "mke2fs")
	top := t.TempDir()
	d := &fullDisk{t, filepath.Join(top, "back"), filepath.Join(top, "live")}
	if err := errors.Join(os.Mkdir(d.back, 0o700), os.Mkdir(d.live, 0o700), unix.Mount("tmpfs", d.back, "tmpfs", 0, "size=24m")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(d.back, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	d.sh(`truncate -s 64M "$1/disk"; mke2fs -q -t ext4 -O ^has_journal -E nodiscard,lazy_itable_init=0 "$1/disk"; mount -o loop "$1/disk" "$2"`)
	t.Cleanup(func() {
		if err := unix.Unmount(d.live, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return d
}

func (d *fullDisk) sh(script string) {
	d.t.Helper()
	if out, err := exec.Command("sh", "-ec", script, "sh", d.back, d.live).CombinedOutput(); err != nil {
		d.t.Fatalf("%s: %v\n%s", script, err, out)
	}
}

// fill leaves a little room on the device, for what is metadata.
func (d *fullDisk) fill() {
	d.sh(`sync -f "$2"; dd if=/dev/zero of="$1/ballast" bs=4k 2>/dev/null || true; truncate -s -400k "$1/ballast"`)
}

func (d *fullDisk) empty() { d.sh(`rm "$1/ballast"`) }

// check drops clean pages and looks at what counts as filled.
func (d *fullDisk) check(b *Blob, s *fakeSource) {
	d.t.Helper()
	d.sh(`echo 1 >/proc/sys/vm/drop_caches`)
	content, err := os.ReadFile(b.Path())
	if err != nil {
		d.t.Fatal(err)
	}
	wrong := 0
	for i := range b.spans {
		if b.backing.Has(i) && !bytes.Equal(content[i*testSpan:(i+1)*testSpan], s.data[i*testSpan:(i+1)*testSpan]) {
			wrong++
		}
	}
	if wrong > 0 {
		d.t.Errorf("%d spans of %d count as filled and are wrong", wrong, b.backing.Count())
	}
}

// TestLostBytesOnDisk has the kernel fail to write what is filled.
func TestLostBytesOnDisk(t *testing.T) {
	t.Run("sync", func(t *testing.T) {
		d, s := newFullDisk(t), newSource(512*testSpan)
		_, b := openBlob(t, Options{}, s, d.live)
		if err := errors.Join(b.Fill(t.Context(), 0, testSpan), b.Sync()); err != nil {
			t.Fatal(err)
		}
		d.fill()
		if err := b.Fill(t.Context(), 0, b.Size()); err != nil || !b.Complete() {
			t.Fatal(err)
		}
		var lost *LostError
		if err := b.Sync(); !errors.As(err, &lost) || b.Complete() {
			t.Fatalf("complete %v, %v", b.Complete(), err)
		}
		d.empty()
		if err := b.Sync(); err != nil {
			t.Fatal("what was durable:", err)
		}
		d.check(b, s)
		_, rebooted := openBlob(t, Options{BootID: bootB}, newSource(512*testSpan), d.live)
		d.check(rebooted, s)
		if rebooted.Filled() != testSpan {
			t.Errorf("%d bytes are filled", rebooted.Filled())
		}
		if err := errors.Join(rebooted.Fill(t.Context(), 0, b.Size()), rebooted.Sync()); err != nil || !rebooted.Durable() {
			t.Fatalf("durable %v, %v", rebooted.Durable(), err)
		}
		d.check(rebooted, s)
	})
	t.Run("kernel", func(t *testing.T) {
		d, s := newFullDisk(t), newSource(512*testSpan)
		_, b := openBlob(t, Options{}, s, d.live)
		d.fill()
		if err := b.Fill(t.Context(), 0, b.Size()); err != nil {
			t.Fatal(err)
		}
		d.sh(`sync -f "$2" || true`) // somebody else's, who may get the error
		d.empty()
		d.sh(`echo 1 >/proc/sys/vm/drop_caches`)
		b.checked.Store(time.Now().Add(-checkEvery).UnixNano())
		if err := b.Fill(t.Context(), 0, b.Size()); err != nil {
			t.Fatal(err)
		}
		d.check(b, s)
		if n := s.fetches.Load(); n < 2 {
			t.Error("nothing was lost: this test tries nothing")
		}
	})
}
