// Command chaos kills the daemon, and what holds its descriptors, under
// containers that compare every byte they read. It prints what the readers saw
// and, with -write, puts that into docs/reliability.md.
//
//	go run ./integration/chaos -transport fanotify,fuse,fuse-loop -kills 500 -pairs 100 -all 50 -cuts 10 -fulls 20
package main

import (
	"context"
	_ "embed"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/lacuna-snapshotter/lacuna/integration/harness"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
	err := run(ctx)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "chaos:", err)
		os.Exit(1)
	}
}

//go:embed reader.py
var reader string

func run(ctx context.Context) error {
	transports := flag.String("transport", "fanotify,fuse,fuse-loop", "transports to try; fuse-loop is fuse through loop devices")
	kills := flag.Int("kills", 500, "kills of the daemon alone")
	points := flag.Int("points", 100, "deaths at named points in the code, for each of them")
	pairs := flag.Int("pairs", 100, "kills of the daemon together with a keeper")
	all := flag.Int("all", 50, "kills of everything at once")
	cuts := flag.Int("cuts", 10, "cuts of the line to the registry")
	fulls := flag.Int("fulls", 20, "times the cache's disk is full")
	write := flag.Bool("write", false, "write docs/reliability.md")
	flag.Parse()
	began := time.Now()
	rows, err := onAll(ctx, strings.Split(*transports, ","), plan{*kills, *points, *pairs, *all, *cuts, *fulls})
	if err != nil {
		return err
	}
	fmt.Printf("chaos: %.0f s\n", time.Since(began).Seconds())
	if *write {
		if err := writeReport("docs", rows); err != nil {
			return err
		}
	}
	for _, r := range rows {
		if !r.met {
			return errors.New("a goal was missed")
		}
	}
	return nil
}

// onAll goes through a plan on several transports, two side by side: most of the
// time is waiting.
func onAll(ctx context.Context, transports []string, p plan) (all []row, err error) {
	if err := buildFaults(ctx); err != nil {
		return nil, err
	}
	var nodes []*node
	for _, transport := range transports {
		e, newErr := harness.FromSource()
		if newErr != nil {
			return nil, newErr
		}
		defer func() { err = errors.Join(err, e.Close()) }()
		n, newErr := newNode(ctx, e, transport)
		if newErr != nil {
			return nil, fmt.Errorf("transport %s: %w", transport, newErr)
		}
		nodes = append(nodes, n)
	}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(2)
	rows := make([][]row, len(nodes))
	for i, n := range nodes {
		g.Go(func() (err error) {
			rows[i], err = n.chaos(ctx, p)
			return err
		})
	}
	err = g.Wait()
	return slices.Concat(rows...), err
}
