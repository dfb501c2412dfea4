package config_test

import (
	"fmt"
	"log"
	"os"
	"path/filepath"

	"github.com/lacuna-snapshotter/lacuna/config"
)

// write makes a configuration file in a directory that end removes.
func write(text string) (path string, end func()) {
	dir, err := os.MkdirTemp("", "config-*")
	if err != nil {
		log.Fatal(err)
	}
	path = filepath.Join(dir, "config.toml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		log.Fatal(err)
	}
	return path, func() { os.RemoveAll(dir) }
}

// A file needs only the keys that differ from the defaults.
func ExampleLoad() {
	path, end := write(`
transport = "fuse"
[cache]
max_bytes = "20GB"
`)
	defer end()
	c, err := config.Load(path)
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(c.Transport, c.Cache.MaxBytes, c.Fetch.Timeout)
	// Output:
	// fuse 20GB 2m0s
}

// Check returns all errors at once, sorted by key.
func ExampleConfig_Check() {
	path, end := write("")
	defer end()
	c, err := config.Load(path)
	if err != nil {
		fmt.Println(err)
		return
	}
	c.Transport = "pigeon"
	c.Fetch.MaxBytes = 1 << 30
	fmt.Println(c.Check())
	// Output:
	// fetch.max_bytes: 1GiB is not between 64KiB and 256MiB
	// transport: "pigeon" is none of ["auto" "fanotify" "cachefiles" "fuse"]
}
