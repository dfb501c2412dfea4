// Command lacunactl makes and inspects layer indexes and looks into a running
// daemon.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/signal"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/lacuna-snapshotter/lacuna/config"
	"github.com/lacuna-snapshotter/lacuna/internal/version"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM, unix.SIGINT)
	err := command().ExecuteContext(ctx)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "lacunactl:", err)
		os.Exit(1)
	}
}

// settings are the flags that every command has.
type settings struct {
	configPath string
	json       bool
}

func (s *settings) load() (*config.Config, error) { return config.Load(s.configPath) }

func command() *cobra.Command {
	s := &settings{}
	root := &cobra.Command{
		Use:           "lacunactl",
		Short:         "indexes for lazy layers, and a look into lacuna-snapshotter",
		Version:       version.String(),
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.PersistentFlags().StringVar(&s.configPath, "config", config.Path, "the daemon's configuration file")
	root.PersistentFlags().BoolVar(&s.json, "json", false, "print JSON")
	root.AddCommand(indexCommand(s), statusCommand(s), layersCommand(s), checkConfigCommand(s), serveCommand(s))
	return root
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

// bytes prints a size as people read it.
func bytes(n int64) string {
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
