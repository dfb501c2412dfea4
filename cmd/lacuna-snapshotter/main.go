// Command lacuna-snapshotter is the daemon: a containerd proxy plugin on a Unix
// socket.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/lacuna-snapshotter/lacuna/config"
	"github.com/lacuna-snapshotter/lacuna/erofs"
	"github.com/lacuna-snapshotter/lacuna/internal/version"
	"github.com/lacuna-snapshotter/lacuna/ondemand/hold"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM, unix.SIGINT)
	err := command().ExecuteContext(ctx)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "lacuna-snapshotter:", err)
		os.Exit(1)
	}
}

func command() *cobra.Command {
	var path string
	root := &cobra.Command{
		Use:   "lacuna-snapshotter",
		Short: "Run the containerd snapshotter that starts containers before their image is downloaded",
		Long: `Run the containerd snapshotter that starts containers before their image is downloaded.

The daemon runs in the foreground, and logs to the standard error. SIGTERM and SIGINT
stop it; mounts stay, and their readers wait for the next daemon.`,
		Example: `  lacuna-snapshotter
  lacuna-snapshotter --config ./config.toml`,
		Version:       version.String(),
		Args:          cobra.NoArgs,
		SilenceUsage:  true,
		SilenceErrors: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := config.Load(path)
			if err != nil {
				return err
			}
			return run(cmd.Context(), c)
		},
	}
	root.Flags().StringVar(&path, "config", config.Path, "configuration file")
	root.AddCommand(serveCommand())
	root.AddCommand(&cobra.Command{
		Use:     "default-config",
		Short:   "Print a configuration file with every key and its default",
		Example: `  lacuna-snapshotter default-config > /etc/lacuna/config.toml`,
		Args:    cobra.NoArgs,
		Run:     func(cmd *cobra.Command, _ []string) { fmt.Fprint(cmd.OutOrStdout(), config.Default()) },
	})
	root.AddCommand(&cobra.Command{
		Use:    "keeper ROOT",
		Short:  "Hold kernel descriptors for a daemon (started by the daemon)",
		Hidden: true,
		Args:   cobra.ExactArgs(1),
		RunE: func(*cobra.Command, []string) error {
			// A terminal's interrupt or the end of a login is the daemon's.
			signal.Ignore(unix.SIGTERM, unix.SIGINT, unix.SIGHUP)
			return hold.RunKeeper()
		},
	})
	root.AddCommand(&cobra.Command{
		Use:    "anchor ROOT GENERATION [LABEL...]",
		Short:  "Hold kernel descriptors while frozen (started by the daemon)",
		Hidden: true,
		Args:   cobra.MinimumNArgs(2),
		Run:    func(*cobra.Command, []string) { hold.RunAnchor() },
	})
	var sparse bool
	change := &cobra.Command{
		Use:    changeLoop + " DEVICE FROM TO",
		Short:  "Make a loop device read another file (started by the daemon)",
		Hidden: true,
		Args:   cobra.ExactArgs(3),
		RunE: func(_ *cobra.Command, args []string) error {
			return erofs.ChangeLoop(args[0], args[1], args[2], sparse)
		},
	}
	change.Flags().BoolVar(&sparse, "sparse", false, "the other file has holes")
	root.AddCommand(change)
	return root
}
