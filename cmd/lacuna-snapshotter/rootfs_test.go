package main

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/lacuna-snapshotter/lacuna/internal/hostcheck"
	"github.com/lacuna-snapshotter/lacuna/internal/statusapi"
)

func mount(t *testing.T, kind, options string, dirs ...string) string {
	t.Helper()
	at := t.TempDir()
	for _, d := range dirs {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Mount(kind, at, kind, 0, options); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(at, 0); err != nil {
			t.Error(err)
		}
	})
	return at
}

func TestRootOnOverlayIsRefused(t *testing.T) {
	hostcheck.Root(t)
	memory := mount(t, "tmpfs", "")
	if err := checkRoot(memory); err != nil {
		t.Errorf("tmpfs: %v", err)
	}
	if left, err := os.ReadDir(memory); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v %v", left, err)
	}
	lower, upper, work := filepath.Join(memory, "l"), filepath.Join(memory, "u"), filepath.Join(memory, "w")
	overlay := mount(t, "overlay", "lowerdir="+lower+",upperdir="+upper+",workdir="+work, lower, upper, work)
	err := checkRoot(overlay)
	if err == nil || !strings.Contains(err.Error(), "is on overlayfs") || !strings.Contains(err.Error(), "ext4") {
		t.Errorf("overlay: %v", err)
	}
	if left, err := os.ReadDir(overlay); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v %v", left, err)
	}
}

func TestLittleRoomIsAProblem(t *testing.T) {
	for _, tc := range []struct {
		d    disk
		want string
	}{
		{disk{size: 100 << 30, free: 50 << 30}, ""},
		{disk{size: 100 << 30, free: 4 << 30}, "backfill pauses"},
		{disk{size: 100 << 30}, "EIO"},
	} {
		if got := tc.d.problem(); !strings.Contains(got, tc.want) || tc.want == "" && got != "" {
			t.Errorf("%+v: %q, want %q", tc.d, got, tc.want)
		}
	}
	d, err := diskOf(t.TempDir())
	if err != nil || d.size <= 0 || d.free > d.size || d.kind == "" {
		t.Errorf("%+v, %v", d, err)
	}
}

// TestStatusTellsOfTheNode has why transports were passed over, and room, in it;
// empty lists are lists.
func TestStatusTellsOfTheNode(t *testing.T) {
	s := &status{root: t.TempDir(), passedOver: []error{errors.New("no fanotify here")}}
	var st statusapi.Status
	s.look(&st)
	if len(st.PassedOver) != 1 || st.PassedOver[0] != "no fanotify here" || st.Disk.Size == 0 || st.Problems == nil {
		t.Errorf("%+v", st)
	}
}
