// Command bench measures what docs/benchmarks.md claims and writes that file.
// Every ratio compares two things that are measured in turn in the same run, and is the
// median of several rounds.
//
//	go run ./integration/bench [-config 'transport = "fuse"']
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lacuna-snapshotter/lacuna/integration/harness"
)

func main() {
	config := flag.String("config", "", "lines for the daemon's configuration: only starts and reads are measured, and nothing is written")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
	err := bench(ctx, *config)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// row is one figure with its goal.
type row struct {
	what, got, goal string
	met             bool
}

type report struct {
	rows []row
}

func (r *report) add(what, goal string, met bool, format string, args ...any) {
	w := row{what, fmt.Sprintf(format, args...), goal, met}
	r.rows = append(r.rows, w)
	fmt.Printf("%-52s %-40s goal %s: %v\n", w.what, w.got, w.goal, w.met)
}

func bench(ctx context.Context, config string) (err error) {
	e, err := harness.FromSource()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, e.Close()) }()
	image, err := e.Numpy(ctx)
	if err != nil {
		return err
	}
	r := &report{}
	if config != "" {
		return startFigures(ctx, r, e, image, config)
	}
	for _, layer := range image.Layers[:2] {
		if err := layerFigures(ctx, r, layer); err != nil {
			return err
		}
	}
	if err := startFigures(ctx, r, e, image, config); err != nil {
		return err
	}
	return r.write(filepath.Join(e.Source, "docs", "benchmarks.md"))
}

// median runs the functions in turn for a number of rounds and returns the
// median time of each.
func median(rounds int, fs ...func() error) ([]time.Duration, error) {
	times := make([][]time.Duration, len(fs))
	for range rounds {
		for i, f := range fs {
			began := time.Now()
			if err := f(); err != nil {
				return nil, err
			}
			times[i] = append(times[i], time.Since(began))
		}
	}
	out := make([]time.Duration, len(fs))
	for i := range times {
		slices.Sort(times[i])
		out[i] = times[i][rounds/2]
	}
	return out, nil
}

func (r *report) write(path string) error {
	var b strings.Builder
	b.WriteString(`# Benchmarks

Written by ` + "`make bench`" + ` (integration/bench). Ratios are medians of interleaved
rounds in one run; absolute times hold for the machine they were taken on: 2
cores, Linux 6.18, containerd 2.4.2, a registry on loopback. The slow line is
200 Mbit/s with a round trip of 20 ms, also for each new connection.

The image is Debian, python3 and numpy, plain gzip layers, unmodified.

| what | measured | goal | met |
|---|---|---|---|
`)
	for _, w := range r.rows {
		met := "yes"
		if !w.met {
			met = "**no**"
		}
		fmt.Fprintf(&b, "| %s | %s | %s | %s |\n", w.what, w.got, w.goal, met)
	}
	notes, err := os.ReadFile(filepath.Join(filepath.Dir(path), "benchmarks-notes.md"))
	if err != nil {
		return err
	}
	b.WriteString("\n")
	b.Write(notes)
	return os.WriteFile(path, []byte(b.String()), 0o644)
}
