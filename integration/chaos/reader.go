package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// seen is what readers saw: files that they read, and those of them that were
// wrong or failed.
type seen struct {
	passes, files, wrong, failed int
	stall                        time.Duration
	reported, unreported         int // containers with wrong bytes
}

func (s *seen) add(o seen) {
	s.passes, s.files, s.wrong, s.failed = s.passes+o.passes, s.files+o.files, s.wrong+o.wrong, s.failed+o.failed
	s.reported, s.unreported = s.reported+o.reported, s.unreported+o.unreported
	s.stall = max(s.stall, o.stall)
}

// container is a reader that runs.
type container struct {
	id      string
	started chan struct{} // closed when it has read its first file
	done    chan struct{}

	// Of a container that is done.
	seen seen
	last int // failed reads of the last pass
	err  error
}

// read starts a container that reads the files a number of times.
func (n *node) read(ctx context.Context, passes int) (*container, error) {
	n.containers++
	c := &container{id: fmt.Sprintf("reader-%s-%d", n.transport, n.containers), started: make(chan struct{}), done: make(chan struct{})}
	cmd := exec.CommandContext(ctx, filepath.Join(n.env.Bin, "ctr"), "--address", n.containerd.Address, "-n", n.env.Namespace(), "run", "--rm", "--snapshotter", "lacuna",
		"--mount", "type=bind,src="+n.expected+",dst=/expected,options=rbind:ro",
		"--mount", "type=bind,src="+n.env.Path("reader.py")+",dst=/reader.py,options=rbind:ro",
		n.ref, c.id, "python3", "/reader.py", strconv.Itoa(passes))
	cmd.Env = append(os.Environ(), "PATH="+n.env.Bin+":"+os.Getenv("PATH"))
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		c.follow(out)
		if err := cmd.Wait(); err != nil {
			c.err = fmt.Errorf("container %s: %w: %s", c.id, err, stderr.String())
		}
		close(c.done)
	}()
	return c, nil
}

// follow reads a reader's output, a line for each file. A reader may be killed by what it
// reads (its own code, while no daemon serves it); then the lines before that count.
func (c *container) follow(out io.Reader) {
	failed := 0
	for s := bufio.NewScanner(out); s.Scan(); {
		what, stall, isFile := strings.Cut(s.Text(), " ")
		if !isFile {
			c.seen.passes++
			c.last, failed = failed, 0
			continue
		}
		if c.seen.files++; c.seen.files == 1 {
			close(c.started)
		}
		seconds, _ := strconv.ParseFloat(stall, 64)
		c.seen.stall = max(c.seen.stall, time.Duration(seconds*float64(time.Second)))
		switch what {
		case "wrong":
			c.seen.wrong++
		case "failed":
			c.seen.failed++
			failed++
		}
	}
}
