package layer

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/lacuna-snapshotter/lacuna/internal/hostcheck"
)

func TestMemoryPressure(t *testing.T) {
	const psi = "some avg10=12.34 avg60=5.00 avg300=1.00 total=1234\nfull avg10=1.00 avg60=0.00 avg300=0.00 total=12\n"
	if got := stalledFor(psi); got != 12.34 {
		t.Errorf("%f", got)
	}
	if got := stalledFor("nonsense"); got != 0 {
		t.Errorf("%f of nonsense", got)
	}
}

func TestDiskPressure(t *testing.T) {
	hostcheck.Root(t)
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=1m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	if why := pressed(dir); strings.Contains(why, "disk") {
		t.Error("an empty disk:", why)
	}
	if err := os.WriteFile(filepath.Join(dir, "full"), make([]byte, 1000<<10), 0o600); err != nil {
		t.Fatal(err)
	}
	if why := pressed(dir); !strings.Contains(why, "disk") {
		t.Errorf("a full disk: %q", why)
	}
}
