package main

import (
	"bufio"
	"cmp"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"github.com/lacuna-snapshotter/lacuna/config"
)

// dockerConfig is the path of the file with credentials: that of the flag, of Docker's
// environment variable, of the caller's home or, for root, of the daemon.
func (x *indexSettings) dockerConfig(c *config.Config) (string, error) {
	path := cmp.Or(x.docker, os.Getenv("DOCKER_CONFIG"))
	if path == "" && x.euid == 0 {
		return c.Registry.DockerConfig, nil
	}
	if path == "" {
		home, err := os.UserHomeDir()
		if err != nil {
			return "", nil //nolint:nilerr // without a home there are no credentials
		}
		path = filepath.Join(home, ".docker")
	}
	if info, err := os.Stat(path); err == nil && info.IsDir() || err != nil && x.docker == "" {
		path = filepath.Join(path, "config.json")
	} else if err != nil {
		return "", fmt.Errorf("--docker-config: %w", err)
	}
	return path, nil
}

// login makes a Docker configuration in memory, with the credentials of --user for a
// reference's registry. It reads the password from the terminal or the standard input.
// The caller closes the file after the last request to the registry.
func login(cmd *cobra.Command, user, ref string) (*os.File, error) {
	if strings.Contains(user, ":") {
		return nil, errors.New("--user: give the name only; the password is read from the terminal or the standard input")
	}
	password, err := readPassword(cmd)
	if err != nil {
		return nil, fmt.Errorf("password of %s: %w", user, err)
	}
	host, _, _ := strings.Cut(ref, "/")
	if host == "docker.io" {
		host = "https://index.docker.io/v1/" // Docker's name for it
	}
	type auth struct {
		Auth string `json:"auth"`
	}
	b, err := json.Marshal(map[string]map[string]auth{
		"auths": {host: {base64.StdEncoding.EncodeToString([]byte(user + ":" + password))}},
	})
	if err != nil {
		return nil, err
	}
	fd, err := unix.MemfdCreate("credentials", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("memfd_create: %w", err)
	}
	f := os.NewFile(uintptr(fd), fmt.Sprintf("/proc/self/fd/%d", fd))
	if _, err := f.Write(b); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

func readPassword(cmd *cobra.Command) (string, error) {
	if f, ok := cmd.InOrStdin().(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		fmt.Fprint(cmd.ErrOrStderr(), "password: ")
		b, err := term.ReadPassword(int(f.Fd()))
		fmt.Fprintln(cmd.ErrOrStderr())
		return string(b), err
	}
	const most = 64 << 10 // some registries' passwords are signed tokens
	line, err := bufio.NewReader(io.LimitReader(cmd.InOrStdin(), most)).ReadString('\n')
	if line = strings.TrimRight(line, "\r\n"); line == "" {
		return "", errors.Join(errors.New("the standard input has none"), err)
	}
	return line, nil
}
