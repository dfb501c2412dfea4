package layer

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"github.com/opencontainers/go-digest"
)

// TestFallbacksOutliveTheDaemon restarts a node that has left a layer to containerd.
func TestFallbacksOutliveTheDaemon(t *testing.T) {
	path := filepath.Join(t.TempDir(), "fallbacks.json")
	x := openFallbacks(path, slog.New(slog.DiscardHandler))
	for i := range maxFallbacks + 1 {
		x.add(Target{Layer: digest.FromString(fmt.Sprint(i)), Ref: "image"}, errors.New("no index"))
	}
	x.drop(digest.FromString("7"))
	again := openFallbacks(path, slog.New(slog.DiscardHandler)).all()
	if len(again) != maxFallbacks-1 || again[0].Layer != digest.FromString("1") || again[0].Reason != "no index" {
		t.Errorf("%d, the first %+v", len(again), again[0])
	}
	if err := os.WriteFile(path, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if list := openFallbacks(path, slog.New(slog.DiscardHandler)).all(); len(list) != 0 {
		t.Errorf("%+v", list)
	}
}
