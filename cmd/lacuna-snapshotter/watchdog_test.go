package main

import (
	"bufio"
	"context"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	grpcstatus "google.golang.org/grpc/status"
)

// service has no snapshots, or a metadata store that is locked up.
type service struct {
	snapshotsapi.UnimplementedSnapshotsServer
	locked bool
}

func (s *service) Stat(ctx context.Context, _ *snapshotsapi.StatSnapshotRequest) (*snapshotsapi.StatSnapshotResponse, error) {
	if s.locked {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	return nil, grpcstatus.Error(codes.NotFound, "not there")
}

func serveService(t *testing.T, s *service) (address string) {
	t.Helper()
	address = filepath.Join(t.TempDir(), "grpc.sock")
	l, err := net.Listen("unix", address) //nolint:noctx // a test's
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	snapshotsapi.RegisterSnapshotsServer(server, s)
	go func() { _ = server.Serve(l) }()
	t.Cleanup(server.Stop)
	return address
}

// TestWatchdogIsFed has a service manager hear from a daemon that is able to serve.
func TestWatchdogIsFed(t *testing.T) {
	path := filepath.Join(t.TempDir(), "notify")
	manager, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer manager.Close()
	t.Setenv("NOTIFY_SOCKET", path)
	t.Setenv("WATCHDOG_USEC", "30000000")
	t.Setenv("WATCHDOG_PID", strconv.Itoa(os.Getpid()))
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		done <- watch(ctx, serveService(t, &service{}), func() {}, slog.New(slog.NewTextHandler(t.Output(), nil)))
	}()
	b := make([]byte, 100)
	if err := manager.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	if n, err := manager.Read(b); err != nil || string(b[:n]) != "WATCHDOG=1" {
		t.Errorf("%q, %v", b[:n], err)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// TestWatchdogIsNotFed has daemons that run and cannot serve.
func TestWatchdogIsNotFed(t *testing.T) {
	for name, c := range map[string]struct {
		service service
		able    func()
	}{
		"metadata locked":    {service{locked: true}, func() {}},
		"transport locked":   {service{}, func() { select {} }},
		"both are all right": {service{}, func() {}},
	} {
		t.Run(name, func(t *testing.T) {
			conn, err := grpc.NewClient("unix://"+serveService(t, &c.service), grpc.WithTransportCredentials(insecure.NewCredentials()))
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			able, most := name == "both are all right", 100*time.Millisecond
			if able {
				most = time.Minute
			}
			if err := check(t.Context(), conn, c.able, most); (err == nil) != able {
				t.Error(err)
			}
		})
	}
}

// TestUnit has the unit say what the daemon's promises need.
func TestUnit(t *testing.T) {
	const path = "../../docs/lacuna-snapshotter.service"
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var section string
	has := map[string][]string{}
	for lines := bufio.NewScanner(f); lines.Scan(); {
		line := strings.TrimSpace(lines.Text())
		switch key, value, ok := strings.Cut(line, "="); {
		case line == "" || line[0] == '#':
		case line[0] == '[':
			section = line
		case ok && section != "":
			has[section+key] = append(has[section+key], value)
		default:
			t.Errorf("line %q", line)
		}
	}
	for key, want := range map[string]string{
		"[Unit]StartLimitIntervalSec":          "0", // never give up
		"[Unit]Wants":                          "network-online.target",
		"[Unit]After":                          "network-online.target",
		"[Unit]Before":                         "containerd.service",
		"[Service]Type":                        "notify",
		"[Service]Restart":                     "always",
		"[Service]KillMode":                    "process", // the keepers live on
		"[Service]FileDescriptorStorePreserve": "yes",
	} {
		if !slices.Equal(has[key], []string{want}) {
			t.Errorf("%s is %q, not %q", key, has[key], want)
		}
	}
	for _, key := range []string{"[Service]WatchdogSec", "[Service]FileDescriptorStoreMax"} {
		if len(has[key]) != 1 {
			t.Errorf("%s is %q", key, has[key])
		} else if n, err := strconv.Atoi(has[key][0]); err != nil || n <= 0 {
			t.Errorf("%s is %q", key, has[key])
		}
	}
	analyze, err := exec.LookPath("systemd-analyze")
	if err != nil {
		return // the keys above are what matters
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	unit := filepath.Join(t.TempDir(), filepath.Base(path))
	b = []byte(strings.Replace(string(b), "ExecStart=/usr/local/bin/lacuna-snapshotter", "ExecStart=/bin/true", 1))
	if err := os.WriteFile(unit, b, 0o600); err != nil {
		t.Fatal(err)
	}
	// Keys that an older systemd does not know are no error.
	if out, err := exec.CommandContext(t.Context(), analyze, "verify", unit).CombinedOutput(); err != nil {
		t.Errorf("systemd-analyze: %v\n%s", err, out)
	}
}
