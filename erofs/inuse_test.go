package erofs

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lacuna-snapshotter/lacuna/fetcher/layertest"
	"github.com/lacuna-snapshotter/lacuna/internal/hostcheck"
)

// TestInUse has every way in which a file system can be reached outlive the
// unmounting of its mountpoint.
func TestInUse(t *testing.T) {
	hostcheck.Root(t)
	for name, reach := range map[string]func(t *testing.T, target string) (end func()){
		"mountpoint only": func(*testing.T, string) func() { return nil },
		"overlay": func(t *testing.T, target string) func() {
			dir := t.TempDir()
			if err := unix.Mount("overlay", dir, "overlay", 0, "lowerdir="+target+":"+t.TempDir()); err != nil {
				t.Fatal(err)
			}
			return func() { unmountOnce(t, dir) }
		},
		"mount namespace": func(t *testing.T, _ string) func() {
			return process(t, exec.Command("unshare", "--mount", "--propagation", "private", "sh", "-c", "echo; read x"))
		},
		"open file": func(t *testing.T, target string) func() {
			return process(t, exec.Command("sh", "-c", `exec 3<"$0/large"; echo; read x`, target))
		},
		"working directory": func(t *testing.T, target string) func() {
			return process(t, exec.Command("sh", "-c", `cd "$0"; echo; read x`, target))
		},
	} {
		t.Run(name, func(t *testing.T) {
			for kind, mount := range map[string]func(bootstrap, blob, target string) error{
				"file": Mount,
				"loop": func(bootstrap, blob, target string) error {
					_, err := MountLoop(bootstrap, blob, true, target)
					return err
				},
			} {
				t.Run(kind, func(t *testing.T) { inUse(t, mount, reach) })
			}
		})
	}
}

func inUse(t *testing.T, mount func(bootstrap, blob, target string) error, reach func(t *testing.T, target string) (end func())) {
	dir := t.TempDir()
	bootstrap, blob := build(t, layertest.TarOf(t, "large", make([]byte, 3*BlockSize)), dir)
	expect := func(when string, want bool) {
		t.Helper()
		used, err := InUse(bootstrap)
		// Processes and loop devices may close the file some time after.
		for deadline := time.Now().Add(20 * time.Second); !want && used && err == nil && time.Now().Before(deadline); used, err = InUse(bootstrap) {
			time.Sleep(5 * time.Millisecond)
		}
		if err != nil || used != want {
			t.Errorf("%s: in use: %v, %v", when, used, err)
		}
	}
	expect("not mounted", false)
	target := filepath.Join(dir, "mnt")
	if err := os.Mkdir(target, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := mount(bootstrap, blob, target); err != nil {
		t.Fatal(err)
	}
	expect("mounted", true)
	end := reach(t, target)
	if err := Unmount(target); err != nil {
		t.Fatal(err)
	}
	if end != nil {
		expect("unmounted lazily", true)
		end()
	}
	expect("in the end", false)
}

// process starts one that writes a line when it is ready and ends with its input.
func process(t *testing.T, cmd *exec.Cmd) (end func()) {
	t.Helper()
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := out.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	return func() {
		in.Close()
		_ = cmd.Wait() // its read fails
	}
}

func unmountOnce(t *testing.T, dir string) {
	t.Helper()
	if err := unix.Unmount(dir, 0); err != nil {
		t.Error(err)
	}
}

func TestInUseIsCertain(t *testing.T) {
	hostcheck.Root(t)
	path := filepath.Join(t.TempDir(), "bootstrap")
	if used, err := InUse(path); !used || !errors.Is(err, os.ErrNotExist) {
		t.Error("missing:", used, err)
	}
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	if used, err := InUse(path); !used || err != nil {
		t.Error("open to write:", used, err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if used, err := InUse(path); used || err != nil {
		t.Error("closed:", used, err)
	}
	if used, err := InUse(filepath.Dir(path)); !used || err == nil {
		t.Error("a directory:", used, err)
	}
}
