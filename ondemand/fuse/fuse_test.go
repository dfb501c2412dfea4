package fuse

import (
	"log/slog"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/lacuna-snapshotter/lacuna/erofs"
	"github.com/lacuna-snapshotter/lacuna/internal/hostcheck"
	"github.com/lacuna-snapshotter/lacuna/internal/kernel"
	"github.com/lacuna-snapshotter/lacuna/ondemand"
	"github.com/lacuna-snapshotter/lacuna/ondemand/hold/inflight"
	"github.com/lacuna-snapshotter/lacuna/ondemand/transporttest"
)

func open(t *testing.T, dir string, loop bool) *Server {
	t.Helper()
	loops, err := erofs.Loops()
	if err != nil {
		t.Fatal(err)
	}
	dev, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	j, err := inflight.New(InFlight)
	if err != nil {
		t.Fatal(err)
	}
	s, err := Serve(dev, j, Options{Dir: dir, Loop: loop, ChangeLoop: erofs.ChangeLoop, Loops: loops, Log: slog.New(slog.NewTextHandler(t.Output(), nil))})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestConformance(t *testing.T) {
	hostcheck.Root(t)
	hostcheck.Feature(t, kernel.FUSE)
	for name, loop := range map[string]bool{"file": false, "loop": true} {
		t.Run(name, func(t *testing.T) {
			transporttest.Run(t, transporttest.Kind{
				New: func(t *testing.T, dir string, _ *ondemand.Engine) ondemand.Transport {
					mount := filepath.Join(dir, "fuse")
					s := open(t, mount, loop)
					s.Recover()
					t.Cleanup(func() { unmount(mount) })
					return s
				},
				Survives: loop,
				Revives:  loop,
			})
		})
	}
}

// unmount takes down a session whose blobs a test has left attached.
func unmount(dir string) { _ = unix.Unmount(dir, unix.MNT_DETACH) }

func TestDriver(t *testing.T) {
	needFUSE(t)
	for name, loop := range map[string]bool{"file": false, "loop": true} {
		t.Run(name, func(t *testing.T) {
			transporttest.RunDriver(t, func(dir string) ondemand.Driver {
				return Driver{Dir: filepath.Join(dir, "fuse"), Loop: loop, ChangeLoop: erofs.ChangeLoop}
			})
		})
	}
}

func TestUnheld(t *testing.T) {
	needFUSE(t)
	transporttest.RunUnheld(t, func(dir string) ondemand.Driver {
		return Driver{Dir: filepath.Join(dir, "fuse"), ChangeLoop: erofs.ChangeLoop}
	})
}
