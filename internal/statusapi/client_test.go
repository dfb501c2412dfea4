package statusapi

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

func listen(t *testing.T, path string) net.Listener {
	t.Helper()
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

func TestGet(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/v1/status" {
			http.NotFound(w, r)
			return
		}
		_, _ = w.Write([]byte(`{"root":"/r"}`))
	}))
	server.Listener.Close()
	server.Listener = listen(t, path)
	server.Start()
	defer server.Close()
	var st Status
	if err := Get(t.Context(), path, "status", &st); err != nil || st.Root != "/r" {
		t.Errorf("%+v, %v", st, err)
	}
	if err := Get(t.Context(), path, "nonsense", &st); err == nil {
		t.Error("an unknown object was answered")
	}
}

func TestNotRunning(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	if err := Get(t.Context(), path, "status", nil); !errors.Is(err, ErrNotRunning) {
		t.Errorf("no socket: %v", err)
	}
	l, _ := listen(t, path).(*net.UnixListener)
	l.SetUnlinkOnClose(false)
	l.Close()
	if err := Get(t.Context(), path, "status", nil); !errors.Is(err, ErrNotRunning) {
		t.Errorf("a dead socket: %v", err)
	}
}

// TestNoAnswer has a socket that keepers hold while no daemon runs.
func TestNoAnswer(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "s")
	listen(t, path)
	if err := Get(t.Context(), path, "status", nil); !errors.Is(err, ErrNoAnswer) {
		t.Errorf("no process accepts: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := Get(ctx, path, "status", nil); !errors.Is(err, context.Canceled) {
		t.Errorf("an interrupt: %v", err)
	}
}

func TestNotAllowed(t *testing.T) {
	refused := &url.Error{Op: "Get", Err: &net.OpError{Op: "dial", Err: os.NewSyscallError("connect", unix.EACCES)}}
	if err := explain(t.Context(), refused); !errors.Is(err, ErrNotAllowed) {
		t.Errorf("another user: %v", err)
	}
}
