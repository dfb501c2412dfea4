package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// vm is where things are.
type vm struct {
	cache, work string
	filter      string
	kills       int
	limit       time.Duration
}

// modules are those that the guest needs; modprobe finds what they depend on.
var modules = []string{"virtio_pci", "virtio_blk", "ext4", "overlay", "loop", "fuse", "cachefiles", "erofs"}

// payload makes the second disk: the script, the tests, commands and images.
func (v *vm) payload(ctx context.Context) error {
	dir := filepath.Join(v.work, "payload")
	if err := os.MkdirAll(filepath.Join(dir, "bin"), 0o755); err != nil {
		return err
	}
	build := exec.CommandContext(ctx, "go", "build", "-o", filepath.Join(v.work, "init"), "./integration/vm/init")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("build init: %w\n%s", err, out)
	}
	for name, pkg := range map[string]string{"cachefiles.test": "./ondemand/cachefiles", "fuse.test": "./ondemand/fuse", "guest.test": "./integration/vm/guest"} {
		build := exec.CommandContext(ctx, "go", "test", "-c", "-tags", "vm", "-o", filepath.Join(dir, "bin", name), pkg)
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := build.CombinedOutput(); err != nil {
			return fmt.Errorf("build %s: %w\n%s", name, err, out)
		}
	}
	if err := command(ctx, "cp", "integration/vm/guest.sh", dir); err != nil {
		return err
	}
	for _, name := range []string{"containerd", "ctr", "containerd-shim-runc-v2", "registry", "lacuna-snapshotter", "lacunactl"} {
		if err := command(ctx, "cp", filepath.Join(".cache/bin", name), filepath.Join(dir, "bin")); err != nil {
			return err
		}
	}
	if err := v.repository(ctx, dir); err != nil {
		return err
	}
	// A file system of mkfs.erofs, and beside it the file that is in it.
	const app = "integration/images/numpy/app"
	if err := command(ctx, "sh", "-c", `mkdir "$2/erofs" && cp "$1/main.py" "$2/app.py" && mkfs.erofs --quiet "$2/erofs/app.erofs" "$1"`, "sh", app, dir); err != nil {
		return err
	}
	return command(ctx, "mke2fs", "-q", "-t", "ext4", "-d", dir, filepath.Join(v.work, "payload.ext4"), "1G")
}

// initramfs packs init with a kernel's modules in the order to load them.
func (v *vm) initramfs(ctx context.Context, kernel, file string) error {
	release, err := os.ReadFile(filepath.Join(kernel, "release"))
	if err != nil {
		return err
	}
	dir := file + ".d"
	if err := os.MkdirAll(filepath.Join(dir, "modules"), 0o755); err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	var order bytes.Buffer
	seen := map[string]bool{}
	for _, m := range modules {
		out, err := exec.CommandContext(ctx, "modprobe", "-d", filepath.Join(kernel, "modules"), "-S", strings.TrimSpace(string(release)), "--show-depends", m).Output()
		if err != nil {
			return fmt.Errorf("modprobe %s: %w", m, err)
		}
		for line := range strings.Lines(string(out)) {
			fields := strings.Fields(line) // "insmod PATH" or "builtin NAME"
			if len(fields) < 2 || fields[0] != "insmod" || seen[fields[1]] {
				continue
			}
			seen[fields[1]] = true
			name := strings.TrimSuffix(filepath.Base(fields[1]), ".xz")
			if err := command(ctx, "sh", "-c", `case $1 in *.xz) xz -dc "$1";; *) cat "$1";; esac >"$2"`, "sh", fields[1], filepath.Join(dir, "modules", name)); err != nil {
				return err
			}
			fmt.Fprintln(&order, name)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "modules", "order"), order.Bytes(), 0o644); err != nil {
		return err
	}
	if err := command(ctx, "cp", filepath.Join(v.work, "init"), filepath.Join(dir, "init")); err != nil {
		return err
	}
	return command(ctx, "sh", "-c", `cd "$1" && find . | cpio --quiet -o -H newc >"$2"`, "sh", dir, file)
}
