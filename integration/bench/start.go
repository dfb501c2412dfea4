package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/lacuna-snapshotter/lacuna/integration/harness"
)

const rounds = 5

// startFigures measures a start over the slow line, then reads of complete layers.
func startFigures(ctx context.Context, r *report, e *harness.Env, image *harness.Image, config string) error {
	p, err := e.Publish(ctx, image, "/bench/numpy:latest", harness.Slow)
	if err != nil {
		return err
	}
	r.add("peak resident memory of index creation", "under 150 MiB", p.Peak > 0 && p.Peak < 150<<20, "%.0f MiB for the whole image", float64(p.Peak)/(1<<20))
	percent := 0.0
	if i := strings.Index(p.Out, " %;"); i > 0 {
		fields := strings.Fields(p.Out[:i])
		percent, _ = strconv.ParseFloat(fields[len(fields)-1], 64)
	}
	r.add("size of the index", "at most 2.5 % of the layers", percent > 0 && percent <= 2.5, "%.2f %%", percent)
	daemon, err := e.StartDaemon("backfill.enabled = false\n" + config)
	if err != nil {
		return err
	}
	c, err := e.StartContainerd("lacuna", "")
	if err != nil {
		return err
	}
	var lazy, full []harness.Start
	for i := range rounds {
		for _, s := range []struct {
			name string
			list *[]harness.Start
		}{{"lacuna", &lazy}, {"overlayfs", &full}} {
			start, err := c.PullAndRun(ctx, p.Link, s.name, p.Ref, fmt.Sprintf("%s-%d", s.name, i))
			if err != nil {
				return err
			}
			*s.list = append(*s.list, start)
			if i+1 < rounds || s.name == "lacuna" {
				if err := forget(ctx, c, daemon, p.Ref); err != nil {
					return err
				}
			}
		}
	}
	byReady := func(a, b harness.Start) int { return int(a.Ready - b.Ready) }
	slices.SortFunc(lazy, byReady)
	slices.SortFunc(full, byReady)
	l, f := lazy[rounds/2], full[rounds/2]
	r.add("ready on the slow line, from the pull on", "under 1.8 s", l.Ready < 1800*time.Millisecond,
		"%.2f s; overlayfs's full pull %.2f s, ratio %.1f", l.Ready.Seconds(), f.Ready.Seconds(), f.Ready.Seconds()/l.Ready.Seconds())
	r.add("bytes over the line until ready, index included", "under 16 MB", l.Bytes < 16e6, "%.1f MB", float64(l.Bytes)/1e6)
	return complete(ctx, r, e, c, daemon, p.Ref, config)
}

// forget removes the image and what the kernel has cached of it (it keeps the pages of
// FUSE's files), so that the next pull is like a first one.
func forget(ctx context.Context, c *harness.Containerd, d *harness.Daemon, ref string) error {
	if _, err := c.Ctr(ctx, "images", "rm", "--sync", ref); err != nil {
		return err
	}
	if err := harness.WaitUnmounted(d.Root+"/snapshots/m", 0); err != nil {
		return err
	}
	return harness.DropCaches()
}

// reads are run in a container of each snapshotter, with cold page caches, and
// print the seconds that they took.
const reads = `
import os, random, sys, time
what = sys.argv[1]
t = time.monotonic()
if what == "walk":
    for d, dirs, files in os.walk("/usr"):
        for f in files:
            os.lstat(os.path.join(d, f))
else:
    names = []
    for d, dirs, files in os.walk("/usr"):
        for f in files:
            p = os.path.join(d, f)
            st = os.lstat(p)
            if (st.st_mode & 0o170000) == 0o100000 and st.st_size > (1 << 20 if what == "random" else 0):
                names.append((p, st.st_size))
    names.sort()
    r = random.Random(1)
    t = time.monotonic()
    if what == "sequential":
        for p, n in names:
            with open(p, "rb", buffering=0) as f:
                while f.read(1 << 20):
                    pass
    else:
        fds = [(os.open(p, os.O_RDONLY), n) for p, n in names]
        for _ in range(20000):
            fd, n = r.choice(fds)
            os.pread(fd, 4096, r.randrange(n) & ~4095)
print("seconds", time.monotonic() - t)
`

// backfill restarts the daemon with backfill switched on, and waits until every
// layer is complete.
func backfill(ctx context.Context, e *harness.Env, daemon *harness.Daemon, config string) (*harness.Daemon, error) {
	if err := daemon.Stop(); err != nil {
		return nil, err
	}
	daemon, err := e.StartDaemon("backfill.quiet = \"0s\"\n" + config)
	if err != nil {
		return nil, err
	}
	for range 600 {
		out, err := e.Lacunactl(ctx, "status")
		if err != nil {
			return nil, err
		}
		if strings.Contains(out, "layers       0 filling") {
			return daemon, nil
		}
		time.Sleep(200 * time.Millisecond)
	}
	return nil, errors.New("layers did not become complete within two minutes")
}

// complete fills all layers and compares reads with overlayfs.
func complete(ctx context.Context, r *report, e *harness.Env, c *harness.Containerd, daemon *harness.Daemon, ref, config string) error {
	for _, s := range []string{"lacuna", "overlayfs"} {
		if err := c.Pull(ctx, s, ref); err != nil {
			return err
		}
	}
	before, err := daemon.PeakRSS() // of the starts
	if err != nil {
		return err
	}
	if daemon, err = backfill(ctx, e, daemon, config); err != nil {
		return err
	}
	rss, err := daemon.PeakRSS()
	if err != nil {
		return err
	}
	rss = max(rss, before)
	r.add("peak resident memory of the daemon", "under 60 MiB", rss < 60<<20, "%.0f MiB", float64(rss)/(1<<20))
	for _, what := range []struct {
		arg, name string
		goal      float64
	}{{"sequential", "sequential reads of complete layers", 0.95}, {"random", "random 4 KiB reads of complete layers", 0.95}, {"walk", "find and stat walks", 1.0}} {
		times := map[string][]float64{}
		for i := range rounds {
			for _, s := range []string{"lacuna", "overlayfs"} {
				if err := harness.DropCaches(); err != nil {
					return err
				}
				// The interpreter is read before the clock starts.
				out, err := c.RunIn(ctx, s, ref, fmt.Sprintf("%s-%s-%d", what.arg, s, i), "python3", "-c", reads, what.arg)
				if err != nil {
					return err
				}
				seconds, err := strconv.ParseFloat(strings.TrimSpace(strings.TrimPrefix(out, "seconds")), 64)
				if err != nil {
					return err
				}
				times[s] = append(times[s], seconds)
			}
		}
		for _, list := range times {
			slices.Sort(list)
		}
		ratio := times["overlayfs"][rounds/2] / times["lacuna"][rounds/2]
		r.add(what.name+", caches dropped", fmt.Sprintf("at least %.2f times overlayfs", what.goal), ratio >= what.goal, "%.2f times overlayfs", ratio)
	}
	return nil
}
