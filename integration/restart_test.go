package integration

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// hashAll prints the sum of all files.
const hashAll = `cd /usr && find . -xdev -type f -print0 | sort -z | xargs -0 sha256sum | sha256sum`

// reader is a container that does so over and over, dropping nothing.
const reader = `echo started; i=0; while [ $i -lt 3 ]; do ` + hashAll + `; i=$((i+1)); done`

// TestContainersOutliveTheDaemon kills and stops the daemon under a reading
// container, before its image is complete.
func TestContainersOutliveTheDaemon(t *testing.T) {
	p := real(t)
	ctx := t.Context()
	pull := func(snapshotter string) {
		t.Helper()
		if err := p.containerd.Pull(ctx, snapshotter, p.ref); err != nil {
			t.Fatal(err)
		}
	}
	pull("overlayfs")
	want, err := p.containerd.RunIn(ctx, "overlayfs", p.ref, "right", "sh", "-c", reader)
	if err != nil {
		t.Fatal(err)
	}
	for name, end := range map[string]func(){
		"killed":  func() { p.daemon.Kill() },
		"stopped": func() { _ = p.daemon.Stop() },
	} {
		t.Run(name, func(t *testing.T) {
			p.forget(t)
			pull("lacuna")
			id := "reader-" + name
			cmd := exec.CommandContext(ctx, p.env.Bin+"/ctr", "--address", p.containerd.Address, "-n", p.env.Namespace(), "run", "--rm", "--snapshotter", "lacuna", p.ref, id, "sh", "-c", reader)
			var stderr strings.Builder
			cmd.Stderr = &stderr
			out, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			// What containerd asks us for while it makes a container would fail.
			var got strings.Builder
			lines := bufio.NewScanner(out)
			if lines.Scan() {
				fmt.Fprintln(&got, lines.Text())
			}
			for range 5 {
				time.Sleep(150 * time.Millisecond)
				end()
				time.Sleep(50 * time.Millisecond)
				if err := p.startDaemon(); err != nil {
					t.Fatal(err)
				}
			}
			for lines.Scan() {
				fmt.Fprintln(&got, lines.Text())
			}
			if err := cmd.Wait(); err != nil {
				t.Errorf("the container failed: %v: %s", err, &stderr)
			}
			if got.String() != want {
				t.Errorf("wrong bytes:\n%s\nwant\n%s", got.String(), want)
			}
		})
	}
}

// TestStoppedWithoutRegistry stops the daemon while a container waits for bytes
// that cannot be had: the next daemon gets them.
func TestStoppedWithoutRegistry(t *testing.T) {
	p := real(t)
	p.forget(t)
	ctx := t.Context()
	if err := p.containerd.Pull(ctx, "lacuna", p.ref); err != nil {
		t.Fatal(err)
	}
	p.link.Cut()
	type result struct {
		out string
		err error
	}
	done := make(chan result, 1)
	go func() {
		out, err := p.containerd.RunIn(ctx, "lacuna", p.ref, "waits", "sh", "-c", "find /usr/share/perl5 /usr/lib/x86_64-linux-gnu -type f -exec cat {} + >/dev/null && echo all")
		done <- result{out, err}
	}()
	p.waitForRoot(t, "waits")
	time.Sleep(time.Second)
	err := p.daemon.Stop()
	p.link.Mend()
	if err := errors.Join(err, p.startDaemon()); err != nil {
		t.Fatal(err)
	}
	if r := <-done; r.err != nil || strings.TrimSpace(r.out) != "all" {
		t.Errorf("%q, %v\n%s", r.out, r.err, p.daemon.Tail())
	}
}

// waitForRoot returns when a container's root file system is mounted: what
// containerd asks us for until then would fail without us.
func (p *parts) waitForRoot(t *testing.T, id string) {
	t.Helper()
	for range 600 {
		b, err := os.ReadFile("/proc/self/mounts")
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(b), "/"+p.env.Namespace()+"/"+id+"/rootfs overlay ") {
			return
		}
		time.Sleep(100 * time.Millisecond)
	}
	t.Fatalf("container %s has no root file system", id)
}

// TestRegistryDown cuts the line under a running container.
func TestRegistryDown(t *testing.T) {
	p := real(t)
	p.forget(t)
	ctx := t.Context()
	if _, err := p.containerd.PullAndRun(ctx, p.link, "lacuna", p.ref, "before"); err != nil {
		t.Fatal(err)
	}
	p.link.Cut()
	read := []string{"sh", "-c", "cat /usr/share/perl5/*/* /usr/share/doc/*/* | sha256sum"}
	out, err := p.containerd.RunIn(ctx, "lacuna", p.ref, "cut", append([]string(nil), read...)...)
	p.link.Mend()
	if err == nil && !strings.Contains(p.daemon.Log(), "read fails with EIO") {
		t.Errorf("reads of holes succeeded without a registry: %s", out)
	}
	if _, err := p.containerd.RunIn(ctx, "lacuna", p.ref, "mended", read...); err != nil {
		t.Errorf("with the registry back: %v", err)
	}
	p.sameTree(t)
}
