// Command lacunactl makes and inspects layer indexes, and inspects a running daemon.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"runtime"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/lacuna-snapshotter/lacuna/config"
	"github.com/lacuna-snapshotter/lacuna/internal/liblog"
	"github.com/lacuna-snapshotter/lacuna/internal/version"
)

// Exit statuses.
const (
	exitFailed = 1
	// exitPartial: some layers of the image have an index now, and some have none.
	exitPartial = 2
)

// errPartial is the error of exitPartial.
var errPartial = errors.New("some layers have no index")

func main() {
	// Libraries return their errors; of their logs only errors are of interest.
	liblog.Redirect(slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelError})))
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM, unix.SIGINT)
	status := run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr)
	stop()
	os.Exit(status)
}

// run is the program.
func run(ctx context.Context, args []string, in io.Reader, out, errOut io.Writer) int {
	s := &settings{}
	cmd := command(s)
	cmd.SetArgs(args)
	cmd.SetIn(in)
	cmd.SetOut(out)
	cmd.SetErr(errOut)
	err := cmd.ExecuteContext(ctx)
	if err == nil {
		return 0
	}
	text := err.Error() + hint(err)
	if s.json {
		_ = printJSON(errOut, map[string]string{"error": text})
	} else {
		fmt.Fprintln(errOut, "lacunactl:", text)
	}
	if errors.Is(err, errPartial) {
		return exitPartial
	}
	return exitFailed
}

// settings are the flags of every command.
type settings struct {
	configPath string
	json       bool
}

func (s *settings) load() (*config.Config, error) { return config.Load(s.configPath) }

func command(s *settings) *cobra.Command {
	root := &cobra.Command{
		Use:   "lacunactl",
		Short: "Manage layer indexes and inspect lacuna-snapshotter",
		Long: `Manage layer indexes and inspect lacuna-snapshotter.

The exit status is 0 after success, 2 where some layers of an image have no index, and
1 after any other error. With --json, results are JSON on the standard output, and
an error is an object on the standard error.`,
		Example: `  lacunactl index create --push registry.example/app:1
  lacunactl status`,
		Version:       version.String(),
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.PersistentFlags().StringVar(&s.configPath, "config", config.Path, "the daemon's configuration file")
	root.PersistentFlags().BoolVar(&s.json, "json", false, "print JSON, also errors")
	root.AddCommand(indexCommand(s), statusCommand(s), layersCommand(s), kernelCommand(s), checkConfigCommand(s), versionCommand(s))
	return root
}

func versionCommand(s *settings) *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version of this program",
		Example: `  lacunactl version
  lacunactl version --json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if s.json {
				return printJSON(cmd.OutOrStdout(), map[string]string{"version": version.String(), "go": runtime.Version()})
			}
			fmt.Fprintf(cmd.OutOrStdout(), "lacunactl %s, %s\n", version.String(), runtime.Version())
			return nil
		},
	}
}

func checkConfigCommand(s *settings) *cobra.Command {
	return &cobra.Command{
		Use:   "check-config [FILE]",
		Short: "Check a configuration file of the daemon",
		Long: `Check a configuration file of the daemon, without a daemon.

All errors are reported at once: with their lines, and values by their keys.`,
		Example: `  lacunactl check-config
  lacunactl check-config ./config.toml`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			path := s.configPath
			if len(args) == 1 {
				path = args[0]
			}
			if _, err := config.Load(path); err != nil {
				return err
			}
			if s.json {
				return printJSON(cmd.OutOrStdout(), map[string]string{"good": path})
			}
			fmt.Fprintln(cmd.OutOrStdout(), path+": good")
			return nil
		},
	}
}

func printJSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(v)
}

// byteCount prints a size for people.
func byteCount(n int64) string {
	const k = 1000
	switch {
	case n < 10*k:
		return fmt.Sprintf("%d B", n)
	case n < 10*k*k:
		return fmt.Sprintf("%.1f kB", float64(n)/k)
	case n < 10*k*k*k:
		return fmt.Sprintf("%.1f MB", float64(n)/k/k)
	}
	return fmt.Sprintf("%.1f GB", float64(n)/k/k/k)
}
