package keeper

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
)

// TestMain lets the test binary be the keeper that Start starts.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "keeper" {
		if err := Run(2); err != nil {
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func TestKeeper(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "keeper.sock")
	if _, _, err := Take(socket); !errors.Is(err, ErrNone) {
		t.Fatalf("no keeper: %v", err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	first, err := Start(socket, []*os.File{r, w}, "keeper")
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(socket); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("socket: %v, %v", info, err)
	}
	r.Close()
	w.Close()
	if err := first.Leave(); err != nil {
		t.Error(err)
	}

	// A successor gets the same pipe, which would be gone without the keeper.
	second, files, err := Take(socket)
	if err != nil || len(files) != 2 {
		t.Fatal(files, err)
	}
	if _, err := files[1].WriteString("kept"); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 4)
	if _, err := files[0].Read(b); err != nil || string(b) != "kept" {
		t.Errorf("%q, %v", b, err)
	}
	gone := make(chan struct{})
	third, _, err := Take(socket)
	if err != nil {
		t.Fatal(err)
	}
	go func() { third.Wait(); close(gone) }()
	if err := second.End(); err != nil {
		t.Error(err)
	}
	<-gone // its death is noticed
	if _, _, err := Take(socket); !errors.Is(err, ErrNone) {
		t.Errorf("after the end: %v", err)
	}
}

func TestRunRefuses(t *testing.T) {
	for _, n := range []int{0, -1, maxHeld + 1} {
		if err := Run(n); err == nil {
			t.Errorf("Run(%d) ran", n)
		}
	}
}
