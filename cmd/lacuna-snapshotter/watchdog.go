package main

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/coreos/go-systemd/v22/daemon"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	grpcstatus "google.golang.org/grpc/status"
)

// watch tells the service manager that the daemon is able to serve, as often as its
// WatchdogSec= asks for, and nothing when it is not: then it is killed, and the next
// daemon adopts what it served. That a process runs says little; so it calls itself through
// its own socket, for an answer that comes from the metadata, and asks able, which
// returns when what it looks at is not locked up. Neither needs the network.
func watch(ctx context.Context, address string, able func(), log *slog.Logger) error {
	every, err := daemon.SdWatchdogEnabled(false)
	if err != nil {
		log.Warn("the service manager's watchdog cannot be used", "error", err)
	}
	if err != nil || every == 0 {
		return nil
	}
	conn, err := grpc.NewClient("unix://"+address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer conn.Close()
	tick := time.NewTicker(every / 3) // sd_watchdog_enabled(3) wants half of it at most
	defer tick.Stop()
	for {
		if err := check(ctx, conn, able, every/3); err == nil {
			notify(log, daemon.SdNotifyWatchdog)
		} else if ctx.Err() == nil {
			log.Error("the daemon does not answer itself; the service manager will restart it", "error", err)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// check asks for a snapshot, which need not be there.
func check(ctx context.Context, conn grpc.ClientConnInterface, able func(), most time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, most)
	defer cancel()
	done := make(chan struct{})
	go func() { able(); close(done) }()
	_, err := snapshotsapi.NewSnapshotsClient(conn).Stat(ctx, &snapshotsapi.StatSnapshotRequest{Key: "watchdog"})
	if err != nil && grpcstatus.Code(err) != codes.NotFound {
		return fmt.Errorf("snapshot service: %w", err)
	}
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("layers and transport: %w", ctx.Err())
	}
}
