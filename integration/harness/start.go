package harness

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"time"
)

// Start is what one start of a container took.
type Start struct {
	Pull  time.Duration // until ctr images pull returned
	Ready time.Duration // from the beginning until the line "ready"
	End   time.Duration // from the beginning until the container ended
	Bytes int64         // over the line until then, by the ready line
	Out   string
}

// Pull pulls an image through the transfer service, as ctr and nerdctl do.
func (c *Containerd) Pull(ctx context.Context, snapshotter, ref string) error {
	_, err := c.Ctr(ctx, "images", "pull", "--hosts-dir", c.env.HostsDir(), "--snapshotter", snapshotter, ref)
	return err
}

// PullAndRun pulls an image, runs it, and measures until its output has a line "ready".
func (c *Containerd) PullAndRun(ctx context.Context, link *Link, snapshotter, ref, id string) (Start, error) {
	var s Start
	before := link.Received()
	began := time.Now()
	if err := c.Pull(ctx, snapshotter, ref); err != nil {
		return s, err
	}
	s.Pull = time.Since(began)
	err := c.run(ctx, snapshotter, ref, id, nil, func(line string) {
		s.Out += line + "\n"
		if line == "ready" && s.Ready == 0 {
			s.Ready = time.Since(began)
			s.Bytes = link.Received() - before
		}
	})
	s.End = time.Since(began)
	if err == nil && s.Ready == 0 {
		err = fmt.Errorf("the container never said ready:\n%s", s.Out)
	}
	return s, err
}

// RunIn runs a command in a fresh container of a pulled image, and returns what it
// prints.
func (c *Containerd) RunIn(ctx context.Context, snapshotter, ref, id string, command ...string) (string, error) {
	return c.Output(ctx, append([]string{"run", "--rm", "--snapshotter", snapshotter}, append([]string{ref, id}, command...)...)...)
}

// Output is Ctr for run and tasks exec, and returns what the container prints, both
// streams together. The shim writes that to a file: containerd's client closes its
// pipes when a task is deleted, whether it has read them or not
// (pkg/cio/io_unix.go, copyIO, 2.4.2).
func (c *Containerd) Output(ctx context.Context, args ...string) (string, error) {
	f, err := os.CreateTemp(c.env.Dir, "output-*")
	if err != nil {
		return "", err
	}
	defer os.Remove(f.Name())
	defer f.Close()
	at := slices.IndexFunc(args, func(a string) bool { return a == "run" || a == "exec" }) + 1
	_, err = c.Ctr(ctx, slices.Insert(slices.Clone(args), at, "--log-uri", "file://"+f.Name())...)
	out, readErr := io.ReadAll(f)
	if err != nil {
		err = fmt.Errorf("%w\n%s", err, out)
	}
	return string(out), errors.Join(err, readErr)
}

func (c *Containerd) run(ctx context.Context, snapshotter, ref, id string, command []string, line func(string)) error {
	args := append([]string{"--address", c.Address, "run", "--rm", "--snapshotter", snapshotter, ref, id}, command...)
	cmd := c.env.command(ctx, "ctr", args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	r, w := io.Pipe()
	cmd.Stdout = w
	if err := cmd.Start(); err != nil {
		return err
	}
	lines := make(chan struct{})
	go func() {
		defer close(lines)
		for s := bufio.NewScanner(r); s.Scan(); {
			line(s.Text())
		}
		_, _ = io.Copy(io.Discard, r)
	}()
	err := cmd.Wait()
	w.Close()
	<-lines
	if err != nil {
		return fmt.Errorf("run %s: %w\n%s", id, err, stderr.String())
	}
	return nil
}
