package statusapi

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Patience is how long Get waits for an answer. A daemon that runs answers at once.
const Patience = 5 * time.Second

// maxAnswer bounds an answer, in bytes. It is enough for a hundred thousand layers.
const maxAnswer = 64 << 20

var (
	// ErrNotRunning means that no process listens on the socket.
	ErrNotRunning = errors.New("no daemon listens on the socket; systemctl status lacuna-snapshotter says why")
	// ErrNoAnswer means that a process holds the socket, as keepers do while no daemon
	// runs, and no daemon answers.
	ErrNoAnswer = errors.New("connected, but no daemon answers: it is stopped, restarting or stuck; systemctl status lacuna-snapshotter says which")
	// ErrNotAllowed means that the caller may not use the socket.
	ErrNotAllowed = errors.New("permission denied: only root may ask the daemon")
)

// Get asks a daemon for one of its objects, such as "status". It fails with
// ErrNotRunning, ErrNoAnswer after Patience, or ErrNotAllowed.
func Get(ctx context.Context, socket, object string, v any) error {
	ctx, cancel := context.WithTimeoutCause(ctx, Patience, ErrNoAnswer)
	defer cancel()
	if err := get(ctx, socket, object, v); err != nil {
		return fmt.Errorf("ask the daemon at %s for %s: %w", socket, object, explain(ctx, err))
	}
	return nil
}

func get(ctx context.Context, socket, object string, v any) error {
	client := http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", socket)
		},
	}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://lacuna/v1/"+object, nil)
	if err != nil {
		return err
	}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("status %s", resp.Status)
	}
	return json.NewDecoder(io.LimitReader(resp.Body, maxAnswer)).Decode(v)
}

// explain replaces the kernel's errors by what they mean here.
func explain(ctx context.Context, err error) error {
	switch {
	case errors.Is(err, os.ErrPermission):
		return ErrNotAllowed
	case errors.Is(err, os.ErrNotExist), errors.Is(err, unix.ECONNREFUSED):
		return ErrNotRunning
	case errors.Is(err, unix.EAGAIN): // the socket's queue of connections is full
		return ErrNoAnswer
	case errors.Is(context.Cause(ctx), ErrNoAnswer):
		return ErrNoAnswer
	}
	return err
}
