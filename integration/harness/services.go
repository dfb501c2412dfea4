package harness

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// StartRegistry runs the reference registry and returns its address.
func (e *Env) StartRegistry() (string, error) {
	addr, err := freePort()
	if err != nil {
		return "", err
	}
	config := fmt.Sprintf(`version: 0.1
log: {level: error, accesslog: {disabled: true}}
storage:
  filesystem: {rootdirectory: %s}
  delete: {enabled: true}
http: {addr: %s}
`, e.Path("registry"), addr)
	path := e.Path("registry.yml")
	if err := os.WriteFile(path, []byte(config), 0o600); err != nil {
		return "", err
	}
	p, err := e.start("registry", "serve", path)
	if err != nil {
		return "", err
	}
	return addr, p.waitSocket("tcp", addr)
}

// HostsDir is a containerd config_path. AllowHTTP adds to it.
func (e *Env) HostsDir() string { return e.Path("certs.d") }

// AllowHTTP makes an address of ours a plain-HTTP registry for containerd and
// the daemon alike.
func (e *Env) AllowHTTP(addr string) error {
	dir := filepath.Join(e.HostsDir(), addr)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "hosts.toml"), []byte("server = \"http://"+addr+"\"\n"), 0o644)
}

// Daemon is our snapshotter.
type Daemon struct {
	*Proc
	Root, Socket, Config string
}

// StartDaemon runs lacuna-snapshotter. Extra is added to its configuration.
// A second start adopts what the first one left.
func (e *Env) StartDaemon(extra string) (*Daemon, error) {
	d := &Daemon{Root: e.Path(DaemonRoot), Socket: e.Path("run", "snapshotter.sock"), Config: e.Path("lacuna.toml")}
	config := fmt.Sprintf(`root = %q
address = %q
status_address = %q
log_level = "debug"
%s
[registry]
hosts_dirs = [%q]
docker_config = %q
`, d.Root, d.Socket, e.Path("run", "status.sock"), extra, e.HostsDir(), e.Path("docker.json"))
	if err := os.WriteFile(d.Config, []byte(config), 0o600); err != nil {
		return nil, err
	}
	var err error
	if d.Proc, err = e.start(cmp.Or(e.Daemon, "lacuna-snapshotter"), "--config", d.Config); err != nil {
		return nil, err
	}
	return d, errors.Join(d.waitSocket("unix", d.Socket), d.waitSocket("unix", e.Path("run", "status.sock")))
}

// Lacunactl runs lacunactl against the daemon's configuration.
func (e *Env) Lacunactl(ctx context.Context, args ...string) (string, error) {
	return e.Run(ctx, "lacunactl", append([]string{"--config", e.Path("lacuna.toml")}, args...)...)
}

// Containerd is a containerd with our plugin.
type Containerd struct {
	*Proc
	Address string
	env     *Env
}

// StartContainerd runs containerd. Snapshotter is CRI's, and pause the image of
// its sandboxes, which may be empty where CRI is not used.
func (e *Env) StartContainerd(snapshotter, pause string) (*Containerd, error) {
	c := &Containerd{Address: e.Path("c", "containerd.sock"), env: e}
	var capabilities string
	for _, name := range e.Capabilities {
		capabilities += strconv.Quote(name) + ", "
	}
	config := fmt.Sprintf(`version = 3
root = %q
state = %q
disabled_plugins = ["io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.nri.v1.nri"]

[grpc]
address = %q

[proxy_plugins.lacuna]
type = "snapshot"
address = %q
capabilities = [%s]
[proxy_plugins.lacuna.exports]
enable_remote_snapshot_annotations = "true"
root = %q

[[plugins."io.containerd.transfer.v1.local".unpack_config]]
platform = "linux/amd64"
snapshotter = "overlayfs"
[[plugins."io.containerd.transfer.v1.local".unpack_config]]
platform = "linux/amd64"
snapshotter = "lacuna"

[plugins."io.containerd.cri.v1.images"]
snapshotter = %q
disable_snapshot_annotations = false
[plugins."io.containerd.cri.v1.images".registry]
config_path = %q
[plugins."io.containerd.cri.v1.images".pinned_images]
sandbox = %q

[plugins."io.containerd.cri.v1.runtime"]
restrict_oom_score_adj = true # machines that may not lower it run this too
[plugins."io.containerd.cri.v1.runtime".cni]
bin_dirs = [%q]
conf_dir = %q
`, e.Path("containerd"), e.Path("c", "state"), c.Address, e.Path("run", "snapshotter.sock"), capabilities, e.Path("lacuna"),
		snapshotter, e.HostsDir(), pause, e.Path("cni", "bin"), e.Path("cni", "conf"))
	for _, dir := range []string{e.Path("c"), e.Path("cni", "bin"), e.Path("cni", "conf")} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return nil, err
		}
	}
	path := e.Path("containerd.toml")
	if err := os.WriteFile(path, []byte(config), 0o600); err != nil {
		return nil, err
	}
	var err error
	if c.Proc, err = e.start("containerd", "--config", path); err != nil {
		return nil, err
	}
	e.onClose(c.removeContainers)
	return c, c.waitSocket("unix", c.Address)
}

// Reconnect waits until containerd has a connection to a daemon that was started
// again. If the last one died during a handshake, containerd tries only after a second.
func (c *Containerd) Reconnect(ctx context.Context) (err error) {
	for range 300 {
		if _, err = c.Ctr(ctx, "snapshots", "--snapshotter", "lacuna", "list"); err == nil {
			return nil
		}
		time.Sleep(100 * time.Millisecond)
	}
	return err
}

// Ctr runs ctr.
func (c *Containerd) Ctr(ctx context.Context, args ...string) (string, error) {
	return c.env.Run(ctx, "ctr", append([]string{"--address", c.Address}, args...)...)
}

// removeContainers ends all tasks and removes containers, so that no shim is
// left when containerd goes.
func (c *Containerd) removeContainers() error {
	ctx := context.Background()
	select {
	case <-c.done:
		return nil // killAll will find the shims
	default:
	}
	for _, ns := range []string{c.env.Namespace(), "k8s.io"} {
		out, err := c.Ctr(ctx, "-n", ns, "tasks", "list", "-q")
		if err != nil {
			return err
		}
		for id := range strings.FieldsSeq(out) {
			_, _ = c.Ctr(ctx, "-n", ns, "tasks", "delete", "--force", id)
		}
		if out, err = c.Ctr(ctx, "-n", ns, "containers", "list", "-q"); err != nil {
			return err
		}
		for id := range strings.FieldsSeq(out) {
			_, _ = c.Ctr(ctx, "-n", ns, "containers", "delete", id)
		}
	}
	return nil
}
