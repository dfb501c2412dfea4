package main

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"time"

	"github.com/lacuna-snapshotter/lacuna/config"
	"github.com/lacuna-snapshotter/lacuna/ondemand"
	"github.com/lacuna-snapshotter/lacuna/ondemand/hold"
)

// sockets are what the daemon listens on. The keepers hold them too: who
// connects while no daemon runs waits for the next one instead of being
// refused.
type sockets struct{ grpc, status *socket }

// socketLabel begins the labels of sockets; their path follows.
const socketLabel = "socket "

func openSockets(c *config.Config, holders *hold.Holders, adopted ondemand.Adopted) (s *sockets, err error) {
	s = &sockets{}
	for label := range adopted {
		// Of another configuration.
		if path, ok := strings.CutPrefix(label, socketLabel); ok && path != c.Address && path != c.Status {
			if err := errors.Join(holders.Release(label), adopted.Take(label).Close()); err != nil {
				return nil, err
			}
		}
	}
	if s.grpc, err = openSocket(c.Address, c.Root, holders, adopted.Take(socketLabel+c.Address)); err != nil {
		return nil, err
	}
	if s.status, err = openSocket(c.Status, c.Root, holders, adopted.Take(socketLabel+c.Status)); err != nil {
		return nil, errors.Join(err, s.grpc.Close(), s.grpc.lock.Close())
	}
	return s, nil
}

func (s *sockets) all() []*socket { return []*socket{s.grpc, s.status} }

func (s *sockets) labels() (list []string) {
	for _, one := range s.all() {
		list = append(list, socketLabel+one.path)
	}
	return list
}

// Close closes both; the keepers' ends stay.
func (s *sockets) Close() error { return errors.Join(s.grpc.Close(), s.status.Close()) }

// unlock lets another daemon have the paths.
func (s *sockets) unlock() {
	for _, one := range s.all() {
		one.lock.Close()
	}
}

// remove unlinks both: nobody holds them any more.
func (s *sockets) remove() error {
	if s == nil {
		return nil
	}
	var errs []error
	for _, one := range s.all() {
		errs = append(errs, one.remove())
	}
	return errors.Join(errs...)
}

// lookTime is how often sockets are looked for at their paths.
const lookTime = 2 * time.Second

// watch makes sockets anew whose path was removed, as cleaners of directories do,
// until ctx ends. Where something else has the path it only says so.
func (s *sockets) watch(ctx context.Context, log *slog.Logger) {
	tick := time.NewTicker(lookTime)
	defer tick.Stop()
	for {
		for _, one := range s.all() {
			one.look(log)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}
