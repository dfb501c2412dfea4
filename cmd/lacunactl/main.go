// Command lacunactl makes and inspects layer indexes and looks into a running
// daemon.
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
	// exitPartial says that some layers have an index now and some have not.
	exitPartial = 2
)

// errPartial is the error of exitPartial.
var errPartial = errors.New("some layers have no index")

func main() {
	// What libraries have to say besides errors is in those that they return.
	liblog.Redirect(slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelError})))
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM, unix.SIGINT)
	status := run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr)
	stop()
	os.Exit(status)
}

// run is the program. With --json an error is an object on stderr, and what there
// is to tell one on stdout.
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

// settings are the flags that every command has.
type settings struct {
	configPath string
	json       bool
}

func (s *settings) load() (*config.Config, error) { return config.Load(s.configPath) }

func command(s *settings) *cobra.Command {
	root := &cobra.Command{
		Use:           "lacunactl",
		Short:         "indexes for lazy layers, and a look into lacuna-snapshotter",
		Version:       version.String(),
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.PersistentFlags().StringVar(&s.configPath, "config", config.Path, "the daemon's configuration file")
	root.PersistentFlags().BoolVar(&s.json, "json", false, "print JSON, errors too")
	root.AddCommand(indexCommand(s), statusCommand(s), layersCommand(s), kernelCommand(s), checkConfigCommand(s), versionCommand(s))
	return root
}

func versionCommand(s *settings) *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "the version of this program",
		Args:  cobra.NoArgs,
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
		Short: "say what is wrong with a configuration file",
		Args:  cobra.MaximumNArgs(1),
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

// byteCount prints a size as people read it.
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
