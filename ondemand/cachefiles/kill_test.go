package cachefiles

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lacuna-snapshotter/lacuna/erofs"
	"github.com/lacuna-snapshotter/lacuna/fetcher/layertest"
	"github.com/lacuna-snapshotter/lacuna/internal/procs"
	"github.com/lacuna-snapshotter/lacuna/ondemand"
	"github.com/lacuna-snapshotter/lacuna/ondemand/hold"
)

// TestMain lets the test binary be the daemon that is killed, and its keepers.
func TestMain(m *testing.M) {
	var err error
	switch {
	case len(os.Args) > 3 && os.Args[1] == "anchor":
		hold.RunAnchor()
	case len(os.Args) == 3 && os.Args[1] == "keeper":
		err = hold.RunKeeper()
	case len(os.Args) == 4 && os.Args[1] == "daemon":
		err = runDaemon(os.Args[2], os.Args[3] == "kept")
	default:
		os.Exit(m.Run())
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, os.Args[1]+":", err)
		os.Exit(1)
	}
}

const victims = 6 // layers of a killed daemon

// slow is an image's data in a file, brought slowly.
type slow struct{ path string }

func (s slow) Fetch(ctx context.Context, first, last int64, put func(int64, []byte) error) error {
	f, err := os.Open(s.path)
	if err != nil {
		return err
	}
	defer f.Close()
	b := make([]byte, testSpan)
	for i := first; i < last; i++ {
		select {
		case <-time.After(5 * time.Millisecond):
		case <-ctx.Done():
			return ctx.Err()
		}
		n, err := f.ReadAt(b, i*testSpan)
		if n == 0 {
			return err
		}
		if err := put(i, b[:n]); err != nil {
			return err
		}
	}
	return nil
}

// runDaemon serves the layers that writeVictims has left in a directory, until it
// is killed.
func runDaemon(dir string, kept bool) error {
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
	engine, err := ondemand.New(ondemand.Options{})
	if err != nil {
		return err
	}
	cache := filepath.Join(dir, "cache")
	o := Options{Dir: cache, Engine: engine, Log: log}
	var dev *os.File
	if kept {
		set, found, err := openKeepers(dir, log)
		if err != nil {
			return err
		}
		o.Holder = set
		if dev = found["device"]; dev != nil {
			o.Adopted = true
			for label, f := range found {
				if label != "device" {
					o.Held = append(o.Held, Held{label, f})
				}
			}
		} else {
			if dev, err = openWhenFree(cache); err != nil {
				return err
			}
			if err := set.HoldFile("device", dev); err != nil {
				return err
			}
		}
		if err := set.Anchor("device"); err != nil {
			return err
		}
	} else if dev, err = openWhenFree(cache); err != nil {
		return err
	}
	s, err := Serve(dev, o)
	if err != nil {
		return err
	}
	for i := range victims {
		base := filepath.Join(dir, fmt.Sprint("victim", i))
		info, err := os.Stat(base + ".data")
		if err != nil {
			return err
		}
		key := ondemand.Key{Volume: "kill", Cookie: filepath.Base(base)}
		st, err := s.Backing(key, info.Size(), testSpan)
		if err != nil {
			return err
		}
		b, err := engine.Open(ondemand.BlobConfig{Key: key, Size: info.Size(), SpanSize: testSpan, Source: slow{base + ".data"}, Backing: st})
		if err != nil {
			return err
		}
		if err := s.Attach(b, base+".boot"); err != nil {
			return err
		}
		var fs unix.Statfs_t
		if unix.Statfs(base, &fs) == nil && uint32(fs.Type) == unix.EROFS_SUPER_MAGIC_V1 {
			continue
		}
		if err := s.Mount(b, base+".boot", base); err != nil {
			return err
		}
	}
	s.Recover()
	fmt.Println("ready")
	select {}
}

func openKeepers(dir string, log *slog.Logger) (*hold.Holders, map[string]*os.File, error) {
	return hold.Adopt(dir, 3, hold.Program{Keeper: []string{"keeper", dir}, Anchor: []string{"anchor", dir}}, log)
}

// holders are the keepers or the anchors of a directory.
func holders(t *testing.T, what, dir string) []int {
	t.Helper()
	pids, err := procs.Find(what, dir)
	if err != nil {
		t.Fatal(err)
	}
	return pids
}

func openWhenFree(cache string) (dev *os.File, err error) {
	for range 500 {
		if dev, err = Open(Config{Dir: cache, Tag: "kill"}); !errors.Is(err, unix.EBUSY) {
			return dev, err
		}
		time.Sleep(20 * time.Millisecond)
	}
	return nil, err
}

// writeVictims leaves layers and what their files must hold.
func writeVictims(t *testing.T, dir string) {
	t.Helper()
	for i := range victims {
		im := newImage(t, layertest.Tar(t, 40, uint64(100+i)))
		base := filepath.Join(dir, fmt.Sprint("victim", i))
		for name, b := range map[string][]byte{".boot": im.bootstrap, ".data": im.data} {
			if err := os.WriteFile(base+name, b, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.Mkdir(base, 0o755); err != nil {
			t.Fatal(err)
		}
		right := base + ".right"
		for path, data := range im.files {
			if err := errors.Join(os.MkdirAll(filepath.Dir(filepath.Join(right, path)), 0o755), os.WriteFile(filepath.Join(right, path), data, 0o644)); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// startDaemon starts a daemon that serves a directory.
func startDaemon(t *testing.T, dir, how string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command("/proc/self/exe", "daemon", dir, how)
	cmd.Stderr = os.Stderr // a file: the keepers have it too
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "ready\n" {
		t.Fatalf("the daemon said %q: %v, %v", line, err, cmd.Wait())
	}
	return cmd
}

func kill(t *testing.T, cmd *exec.Cmd) {
	t.Helper()
	if err := cmd.Process.Kill(); err != nil {
		t.Error(err)
	}
	_ = cmd.Wait()
}

// endVictims takes down what daemons have left, without any.
func endVictims(t *testing.T, dir string) {
	t.Helper()
	for i := range victims {
		for range 20 { // one over the other
			if erofs.Unmount(filepath.Join(dir, fmt.Sprint("victim", i))) != nil {
				break
			}
		}
	}
	set, found, err := openKeepers(dir, slog.New(slog.DiscardHandler))
	for _, f := range found {
		f.Close()
	}
	if err == nil {
		err = set.ReleaseAll()
	}
	if err != nil {
		t.Error(err)
	}
	// The kernel lets go of the directory a little later.
	for range 600 {
		if err = os.RemoveAll(filepath.Join(dir, "cache")); err == nil {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Error(err)
}

func killsWanted(t *testing.T) int {
	t.Helper()
	s := os.Getenv("LACUNA_KILLS")
	if s == "" {
		return 20
	}
	n, err := strconv.Atoi(s)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// keeperEvery is at which of a round's kills a keeper goes too, and each so many.
const keeperEvery = 4

// TestKilledDaemon kills the daemon again and again under readers, every fourth
// time with one of the keepers that hold the device: the readers wait, and read
// right bytes. LACUNA_KILLS is how often, at least.
func TestKilledDaemon(t *testing.T) {
	needKernel(t)
	want := killsWanted(t)
	kills, withKeeper, files, longest := 0, 0, 0, time.Duration(0)
	for round := 0; kills < want && !t.Failed(); round++ {
		t.Run(fmt.Sprint(round), func(t *testing.T) {
			k, f, l := killRound(t)
			kills, withKeeper, files, longest = kills+k, withKeeper+k/keeperEvery, files+f, max(longest, l)
		})
	}
	fmt.Printf("cachefiles: daemon killed %d times, %d of them with a keeper: %d files read, all right, longest read of a file %s\n", kills, withKeeper, files, longest.Round(time.Millisecond))
}

// killRound reads fresh layers once while the daemon is killed.
func killRound(t *testing.T) (kills, files int, longest time.Duration) {
	dir := t.TempDir()
	writeVictims(t, dir)
	t.Cleanup(func() { endVictims(t, dir) })
	daemon := startDaemon(t, dir, "kept")
	var readers sync.WaitGroup
	var mu sync.Mutex
	for i := range victims {
		readers.Add(1)
		go func() {
			defer readers.Done()
			base := filepath.Join(dir, fmt.Sprint("victim", i))
			err := filepath.WalkDir(base+".right", func(path string, d os.DirEntry, err error) error {
				if err != nil || d.IsDir() {
					return err
				}
				began := time.Now()
				out, err := exec.Command("cmp", path, strings.Replace(path, ".right", "", 1)).CombinedOutput()
				mu.Lock()
				longest = max(longest, time.Since(began))
				files++
				mu.Unlock()
				if err != nil {
					return fmt.Errorf("%w: %s", err, out)
				}
				return nil
			})
			if err != nil {
				t.Errorf("layer %d: %v", i, err)
			}
		}()
	}
	done := make(chan struct{})
	go func() { readers.Wait(); close(done) }()
	for reading := true; reading; {
		select {
		case <-done:
			reading = false
		case <-time.After(time.Duration(rand.IntN(400)) * time.Millisecond):
			if kills%keeperEvery == keeperEvery-1 {
				pids := holders(t, "keeper", dir)
				_ = unix.Kill(pids[rand.IntN(len(pids))], unix.SIGKILL)
			}
			kill(t, daemon)
			kills++
			daemon = startDaemon(t, dir, "kept")
		}
	}
	if kills == 0 {
		t.Error("the readers were faster than the first kill")
	}
	for i := range victims {
		if err := erofs.Unmount(filepath.Join(dir, fmt.Sprint("victim", i))); err != nil {
			t.Error(err)
		}
	}
	kill(t, daemon)
	return kills, files, longest
}

// TestEverybodyKilled kills the daemon where nobody else holds the device: reads
// of holes fail, none gives zeros, and a new daemon mounts the layers anew, also
// those that somebody still has open. One for each twelve of LACUNA_KILLS.
func TestEverybodyKilled(t *testing.T) {
	needKernel(t)
	for i := range killsWanted(t) / 12 {
		t.Run(fmt.Sprint(i), everybodyKilled)
	}
}

func everybodyKilled(t *testing.T) {
	dir := t.TempDir()
	writeVictims(t, dir)
	t.Cleanup(func() { endVictims(t, dir) })
	daemon := startDaemon(t, dir, "alone")
	first := filepath.Join(dir, "victim0")
	holder := exec.Command("sleep", "600")
	holder.Dir = first
	if err := holder.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = holder.Process.Kill(); _ = holder.Wait() }()
	kill(t, daemon)
	failed := 0
	err := filepath.WalkDir(first+".right", func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		want, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		got, err := exec.Command("cat", strings.Replace(path, ".right", "", 1)).Output()
		if err != nil {
			failed++
		}
		if !strings.HasPrefix(string(want), string(got)) {
			return fmt.Errorf("wrong bytes in %s", path)
		}
		return nil
	})
	if err != nil || failed == 0 {
		t.Errorf("%d reads failed, %v", failed, err)
	}
	for i := range victims {
		if err := erofs.Unmount(filepath.Join(dir, fmt.Sprint("victim", i))); err != nil {
			t.Error(err)
		}
	}
	daemon = startDaemon(t, dir, "alone")
	for i := range victims {
		base := filepath.Join(dir, fmt.Sprint("victim", i))
		if out, err := exec.Command("diff", "-r", base+".right", base).CombinedOutput(); err != nil && strings.Contains(string(out), "differ") {
			t.Errorf("layer %d: %s", i, out)
		}
		if err := erofs.Unmount(base); err != nil {
			t.Error(err)
		}
	}
	kill(t, daemon)
}

// TestEverybodyKilledButAnchored kills the daemon and all that hold the device,
// also the frozen process, which stays: readers of the next moment wait, and read
// right bytes in the mounts that are. One for each twelve of LACUNA_KILLS.
func TestEverybodyKilledButAnchored(t *testing.T) {
	needKernel(t)
	for i := range killsWanted(t) / 12 {
		t.Run(fmt.Sprint(i), everybodyKilledButAnchored)
	}
}

func everybodyKilledButAnchored(t *testing.T) {
	dir := t.TempDir()
	writeVictims(t, dir)
	t.Cleanup(func() { endVictims(t, dir) })
	daemon := startDaemon(t, dir, "kept")
	kill(t, daemon) // first: it would start other keepers
	for _, pid := range append(holders(t, "keeper", dir), holders(t, "anchor", dir)...) {
		if err := unix.Kill(pid, unix.SIGKILL); err != nil {
			t.Error(err)
		}
	}
	for len(holders(t, "keeper", dir)) > 0 {
		time.Sleep(time.Millisecond)
	}
	if n := len(holders(t, "anchor", dir)); n != 1 {
		t.Errorf("%d anchors", n)
	}
	var readers []*exec.Cmd
	for i := range victims {
		base := filepath.Join(dir, fmt.Sprint("victim", i))
		// Only what differs: directories and links are not on the right side.
		cmd := exec.Command("sh", "-c", `cd "$0" && find . -type f -exec cmp {} "$1"/{} \;`, base+".right", base)
		var out strings.Builder
		cmd.Stdout, cmd.Stderr = &out, &out
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		readers = append(readers, cmd)
	}
	time.Sleep(300 * time.Millisecond) // all wait by now; if not, less is tested
	daemon = startDaemon(t, dir, "kept")
	for i, cmd := range readers {
		if err := cmd.Wait(); err != nil || fmt.Sprint(cmd.Stdout) != "" {
			t.Errorf("layer %d: %v: %s", i, err, cmd.Stdout)
		}
	}
	for i := range victims {
		if err := erofs.Unmount(filepath.Join(dir, fmt.Sprint("victim", i))); err != nil {
			t.Error(err)
		}
	}
	kill(t, daemon)
}
