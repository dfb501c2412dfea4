package fanotify

import (
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"github.com/lacuna-snapshotter/lacuna/ondemand"
	"github.com/lacuna-snapshotter/lacuna/ondemand/hold/inflight"
)

// losing is a file of which the first sync says that the disk has lost everything.
type losing struct {
	*ondemand.Bitmap
	file *os.File
	lost bool
}

func (s *losing) Put(span int64, data []byte) error {
	_, err := s.file.WriteAt(data, span*kernelSpan)
	s.Set(span)
	return err
}

func (s *losing) Sync() error {
	if s.lost {
		return nil
	}
	s.lost = true
	s.Clear()
	return &ondemand.LostError{Path: s.file.Name(), Spans: kernelSpans, Err: errors.New("write back")}
}

func (s *losing) Allocated() (int64, error) { return 0, nil }

func (s *losing) Close() error { return s.file.Close() }

// TestCompleteIsNotDurable attaches a blob that has no holes, as far as its record
// knows: until it is synced, holes may come back, and readers must wait for them.
func TestCompleteIsNotDurable(t *testing.T) {
	needKernel(t)
	path := filepath.Join(t.TempDir(), "blob")
	file, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := file.Truncate(kernelSpans * kernelSpan); err != nil {
		t.Fatal(err)
	}
	backing := &losing{Bitmap: ondemand.NewBitmap(kernelSpans), file: file}
	for span := range int64(kernelSpans) {
		backing.Set(span)
	}
	group, err := NewGroup()
	if err != nil {
		t.Fatal(err)
	}
	j, err := inflight.New(InFlight)
	if err != nil {
		t.Fatal(err)
	}
	s, err := Serve(group, j, slog.New(slog.NewTextHandler(t.Output(), nil)))
	if err != nil {
		t.Fatal(err)
	}
	s.Recover()
	engine, err := ondemand.New(ondemand.Options{})
	if err != nil {
		t.Fatal(err)
	}
	b, err := engine.Open(ondemand.BlobConfig{
		Key: ondemand.Key{Volume: "v", Cookie: "c"}, Path: path, Size: kernelSpans * kernelSpan, SpanSize: kernelSpan, Source: &letters{}, Backing: backing,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(s.Close(), b.Close()); err != nil {
			t.Error(err)
		}
	})
	if err := s.Attach(b, ""); err != nil || !b.Complete() {
		t.Fatal(b.Complete(), err)
	}
	if !s.Serves(b) || !s.Needed() {
		t.Error("the group would be let go of while holes may come back")
	}
	if err := s.Detach(b); !errors.Is(err, ondemand.ErrBusy) { // its bootstrap is not to be found
		t.Errorf("detached while it may be in use: %v", err)
	}
	var lost *ondemand.LostError
	if err := b.Sync(); !errors.As(err, &lost) {
		t.Fatal(err)
	}
	if err := startReader(t, path, 3).result(t); err != nil {
		t.Error(err)
	}
	if err := errors.Join(b.Fill(t.Context(), 0, b.Size()), b.Sync(), s.Release(b)); err != nil {
		t.Fatal(err)
	}
	if s.Serves(b) || s.Needed() {
		t.Error("the group is held for a durable blob")
	}
	if err := s.Detach(b); err != nil {
		t.Error(err)
	}
}
