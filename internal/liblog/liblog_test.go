package liblog

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"os"
	"testing"

	"github.com/containerd/log"
	"google.golang.org/grpc/grpclog"
)

// TestLibrariesLogAsWeDo has containerd and gRPC log while the program's log is JSON:
// every line is, none goes past it to stderr, and what tells of each request is for
// debugging.
func TestLibrariesLogAsWeDo(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	stderr := os.Stderr
	os.Stderr = w
	defer func() { os.Stderr = stderr }()
	for level, want := range map[slog.Level][]string{
		slog.LevelInfo:  {"WARN a warning", "ERROR an error", "ERROR of gRPC"},
		slog.LevelDebug: {"DEBUG host will try HTTPS first", "WARN a warning", "ERROR an error", "ERROR of gRPC"},
	} {
		var out bytes.Buffer
		Redirect(slog.New(slog.NewJSONHandler(&out, &slog.HandlerOptions{Level: level})))
		log.G(t.Context()).WithField("host", "h").Info("host will try HTTPS first")
		log.G(t.Context()).Warn("a warning")
		log.G(t.Context()).WithError(errors.New("cause")).Error("an error")
		grpclog.Info("of no interest")
		grpclog.Error("of gRPC")
		var got []string
		for dec := json.NewDecoder(&out); ; {
			var line struct{ Level, Msg, Library string }
			if err := dec.Decode(&line); err == io.EOF {
				break
			} else if err != nil {
				t.Fatal(err)
			}
			if line.Library == "" {
				t.Errorf("%+v does not say whose it is", line)
			}
			got = append(got, line.Level+" "+line.Msg)
		}
		if len(got) != len(want) {
			t.Fatalf("level %v: %q, want %q", level, got, want)
		}
		for i := range want {
			if got[i] != want[i] {
				t.Errorf("level %v: %q, want %q", level, got[i], want[i])
			}
		}
	}
	w.Close()
	if b, err := io.ReadAll(r); err != nil || len(b) > 0 {
		t.Errorf("stderr got %q, %v", b, err)
	}
}
