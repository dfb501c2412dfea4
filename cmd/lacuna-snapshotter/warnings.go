package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"

	"github.com/lacuna-snapshotter/lacuna/config"
)

// warnings are problems of the configuration and the environment with which the daemon
// can start, but which will make it fail later.
func warnings(c *config.Config) []error {
	var list []error
	for _, err := range []error{
		readableJSON(c.Registry.DockerConfig),
		sameMounts("/proc/self/ns/mnt", "/proc/1/ns/mnt"),
	} {
		if err != nil {
			list = append(list, err)
		}
	}
	return list
}

// readableJSON fails where a file of credentials exists and cannot be used.
func readableJSON(path string) error {
	b, err := os.ReadFile(path)
	if path == "" || errors.Is(err, os.ErrNotExist) {
		return nil
	}
	var v map[string]any
	if err == nil {
		err = json.Unmarshal(b, &v)
	}
	if err != nil {
		return fmt.Errorf("registry.docker_config %s cannot be used, so private images cannot be pulled: %w", path, err)
	}
	return nil
}

// sameMounts fails where this process is in another mount namespace than init, so that
// containerd may not see its mounts.
func sameMounts(ours, init string) error {
	a, err := os.Readlink(ours)
	b, initErr := os.Readlink(init)
	if err != nil || initErr != nil || a == b {
		return nil //nolint:nilerr // it is unknown
	}
	return errors.New("the daemon is in a mount namespace of its own (systemd's PrivateMounts=, ProtectSystem= and PrivateTmp= make one, and so do containers): unless mounts propagate to containerd's, its containers see empty directories")
}
