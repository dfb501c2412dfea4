// Command vm runs the tests of the cachefiles transport on kernels that have it:
// Debian's, in QEMU, without hardware virtualization. It makes the kernels and
// the root file system once, in the directory that it is given. The working directory
// is the top of the source, after make tools.
//
//	go run ./integration/vm [-cache DIR] [-kernel 6.1,6.12] [-run REGEXP] [-kills N] [-limit 30m]
package main

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
	err := run(ctx)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "vm:", err)
		os.Exit(1)
	}
}

// run prepares what is missing and boots the kernels, in parallel.
func run(ctx context.Context) (err error) {
	var v vm
	kernels := flag.String("kernel", "6.1,6.12", "kernel series")
	flag.StringVar(&v.cache, "cache", ".cache/vm", "where kernels and the root file system are kept")
	flag.StringVar(&v.filter, "run", ".", "regular expression of the tests to run")
	flag.IntVar(&v.kills, "kills", 20, "how often the daemon is killed in TestKilledDaemon, at least")
	flag.DurationVar(&v.limit, "limit", 15*time.Minute, "when a VM counts as hanging")
	flag.Parse()
	if v.cache, err = filepath.Abs(v.cache); err != nil {
		return err
	}
	if err := os.MkdirAll(v.cache, 0o755); err != nil {
		return err
	}
	began := time.Now()
	root := filepath.Join(v.cache, "root.ext4")
	if err := make(ctx, root, "integration/vm/root.sh", root); err != nil {
		return err
	}
	for k := range strings.SplitSeq(*kernels, ",") {
		dir := filepath.Join(v.cache, k)
		if err := make(ctx, filepath.Join(dir, "release"), "integration/vm/kernel.sh", k, dir); err != nil {
			return err
		}
	}
	if v.work, err = os.MkdirTemp(v.cache, "run-"); err != nil {
		return err
	}
	defer os.RemoveAll(v.work)
	if err := v.payload(ctx); err != nil {
		return err
	}
	fmt.Printf("vm: prepared in %.0f s\n", time.Since(began).Seconds())
	var g errgroup.Group // one that fails does not end the other
	for k := range strings.SplitSeq(*kernels, ",") {
		g.Go(func() error {
			if err := v.boot(ctx, k); err != nil {
				return fmt.Errorf("kernel %s: %w", k, err)
			}
			return nil
		})
	}
	err = g.Wait()
	fmt.Printf("vm: %.0f s in all\n", time.Since(began).Seconds())
	return err
}

// make runs a script unless its target exists.
func make(ctx context.Context, target, script string, args ...string) error {
	if _, err := os.Stat(target); err == nil {
		return nil
	}
	fmt.Println("vm: making", target)
	return command(ctx, script, args...)
}

func command(ctx context.Context, name string, args ...string) error {
	cmd := exec.CommandContext(ctx, name, args...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s %s: %w\n%s", name, strings.Join(args, " "), err, out)
	}
	return nil
}

// boot runs the guest's script on one kernel.
func (v *vm) boot(ctx context.Context, series string) error {
	dir := filepath.Join(v.cache, series)
	initrd := filepath.Join(v.work, series+".initrd")
	if err := v.initramfs(ctx, dir, initrd); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, v.limit)
	defer cancel()
	// One thread for both processors: with a thread for each, one of them may run
	// code that the other one's kernel has patched in the meantime.
	cmd := exec.CommandContext(ctx, "qemu-system-x86_64",
		"-accel", "tcg,thread=single", "-cpu", "max", "-smp", "2", "-m", "2048",
		"-nographic", "-no-reboot", "-nodefaults", "-serial", "stdio",
		"-kernel", filepath.Join(dir, "vmlinuz"), "-initrd", initrd,
		"-append", "console=ttyS0 quiet panic=-1 hung_task_timeout_secs=60 lacuna.run="+v.filter+" lacuna.kills="+strconv.Itoa(v.kills),
		"-drive", "if=virtio,format=raw,snapshot=on,file="+filepath.Join(v.cache, "root.ext4"),
		"-drive", "if=virtio,format=raw,snapshot=on,file="+filepath.Join(v.work, "payload.ext4"))
	cmd.Env = append(os.Environ(), "TMPDIR="+v.work)
	r, w := io.Pipe()
	cmd.Stdout, cmd.Stderr = w, w
	if err := cmd.Start(); err != nil {
		return err
	}
	go func() { w.CloseWithError(errors.Join(cmd.Wait(), io.EOF)) }()
	end := ""
	s := bufio.NewScanner(r)
	for s.Scan() {
		line := strings.TrimRight(s.Text(), "\r")
		fmt.Printf("%-4s %s\n", series, line)
		if rest, ok := strings.CutPrefix(line, "VM EXIT "); ok {
			end = rest
		}
	}
	switch {
	case ctx.Err() != nil:
		return fmt.Errorf("the VM did not end within %s", v.limit)
	case end == "":
		return fmt.Errorf("the VM died: %w", s.Err())
	case end != "0":
		return errors.New("tests failed")
	}
	return nil
}
