package main

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/containerd/platforms"
	"github.com/spf13/cobra"

	"github.com/lacuna-snapshotter/lacuna/config"
	"github.com/lacuna-snapshotter/lacuna/fetcher/index"
	"github.com/lacuna-snapshotter/lacuna/fetcher/registry"
)

func indexCommand(s *settings) *cobra.Command {
	x := &indexSettings{settings: s, euid: os.Geteuid()}
	root := &cobra.Command{
		Use:   "index",
		Short: "Make, push and inspect layer indexes",
		Example: `  lacunactl index create registry.example/app:1
  lacunactl index list`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return fmt.Errorf("unknown command %q of %q: see %s --help", args[0], cmd.CommandPath(), cmd.CommandPath())
			}
			return cmd.Help()
		},
	}
	root.PersistentFlags().StringVar(&x.storeDir, "store", "", "`directory` of indexes (default: index in the daemon's root; for other users than root, lacuna/index in their cache directory)")
	root.AddCommand(createCommand(x), listCommand(x), removeCommand(x))
	push := &cobra.Command{
		Use:   "push IMAGE",
		Short: "Push an image's index from the store to the image's repository",
		Long: `Push an image's index from the store to the image's repository.

The exit status is 2 where some layers have none.`,
		Example: `  lacunactl index push registry.example/app:1
  lacunactl index push --user ann registry.example/app:1 < password`,
		Args: cobra.ExactArgs(1),
		RunE: x.each((*indexer).pushOnly),
	}
	inspect := &cobra.Command{
		Use:   "inspect IMAGE",
		Short: "Show an image's index: in the registry, else in the store",
		Example: `  lacunactl index inspect registry.example/app:1
  lacunactl index inspect --platform all registry.example/app:1`,
		Args: cobra.ExactArgs(1),
		RunE: x.each((*indexer).inspect),
	}
	x.imageFlags(push)
	x.imageFlags(inspect)
	root.AddCommand(push, inspect)
	return root
}

// indexSettings are the flags of the index commands.
type indexSettings struct {
	*settings
	euid                  int
	storeDir, platform    string
	plainHTTP             bool
	docker, user          string
	layout                string
	containerd, namespace string
}

// imageFlags are those of commands that read an image.
func (x *indexSettings) imageFlags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&x.platform, "platform", platforms.DefaultString(), "`platforms` of a multi-platform image, separated by commas, or all; this machine's without the flag")
	f.BoolVar(&x.plainHTTP, "plain-http", false, "use HTTP for the registry")
	f.StringVar(&x.docker, "docker-config", "", "`path` of Docker's configuration, a file or directory, with credentials (default: $DOCKER_CONFIG; then for root the daemon's registry.docker_config, for other users ~/.docker)")
	f.StringVar(&x.user, "user", "", "user `name` at the registry; the password is read from the terminal or the standard input")
	f.StringVar(&x.layout, "oci-layout", "", "read the image from the OCI layout at this `path`, a directory or a tar of one, instead of the registry")
	f.StringVar(&x.containerd, "containerd", "", "read the image from the content store of the containerd on this `socket`, instead of the registry")
	f.StringVar(&x.namespace, "namespace", "default", "containerd's namespace for --containerd; Kubernetes uses k8s.io")
	cmd.MarkFlagsMutuallyExclusive("oci-layout", "containerd")
}

// indexer is one image with the store of its indexes.
type indexer struct {
	*indexSettings
	config   *config.Config
	client   *registry.Client
	store    *index.Store
	resolver *index.Resolver
	image    *index.Image
	ref      string
	many     bool // there are other platforms
}

// want names a layer of the image for the resolver.
func (e *indexer) want(l index.ImageLayer) index.Want {
	return index.Want{Ref: e.ref, Manifest: e.image.Manifest.Digest, Layer: l.Digest}
}

// result is what a command reports about one image.
type result struct {
	Image    string        `json:"image"`
	Platform string        `json:"platform"`
	Layers   []row         `json:"layers"`
	Note     string        `json:"note"`
	Pushed   *index.Pushed `json:"pushed,omitempty"`
}

// each calls f for each wanted platform of the image that the argument names, and
// prints its result. A platform that fails does not stop the others.
func (x *indexSettings) each(f func(*indexer, *cobra.Command) (result, error)) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		list, done, err := x.open(cmd, args[0])
		if err != nil {
			return err
		}
		defer done()
		results := []result{}
		var errs []error
		for _, e := range list {
			r, err := f(e, cmd)
			if err != nil && e.many {
				err = fmt.Errorf("%s: %w", platforms.FormatAll(e.image.Platform), err)
			}
			errs = append(errs, err)
			if r.Image == "" {
				continue
			}
			results = append(results, r)
			if !x.json {
				errs = append(errs, e.print(cmd.OutOrStdout(), r))
			}
		}
		if x.json {
			errs = append(errs, printJSON(cmd.OutOrStdout(), results))
		}
		return errors.Join(errs...)
	}
}

// open resolves an image's wanted platforms. The caller calls done at the end.
func (x *indexSettings) open(cmd *cobra.Command, ref string) (list []*indexer, done func(), err error) {
	c, err := x.load()
	if err != nil {
		return nil, nil, err
	}
	want, err := index.ParsePlatforms(x.platform)
	if err != nil {
		return nil, nil, err
	}
	store, err := x.store(c)
	if err != nil {
		return nil, nil, err
	}
	var from index.Images
	done = func() {}
	switch {
	case x.layout != "":
		layout, err := index.OpenLayout(x.layout, ref)
		if err != nil {
			return nil, nil, err
		}
		from, done = layout, func() { layout.Close() }
	case x.containerd != "":
		c, err := dialContainerd(x.containerd, x.namespace, ref)
		if err != nil {
			return nil, nil, err
		}
		from, done = c, func() { c.Close() }
	}
	r := c.Registry
	o := registry.Options{
		HostsDirs: r.HostsDirs, PlainHTTP: r.PlainHTTP || x.plainHTTP,
		Retry: registry.Retry{Attempts: r.Attempts, Base: r.Backoff.Duration, Max: r.MaxBackoff.Duration},
		Stall: r.Stall.Duration,
	}
	if x.user == "" {
		o.DockerConfig, err = x.dockerConfig(c)
	} else {
		var f *os.File
		if f, err = login(cmd, x.user, ref); err == nil {
			o.DockerConfig = f.Name()
			also := done
			done = func() { also(); f.Close() }
		}
	}
	var client *registry.Client
	if err == nil {
		client, err = registry.New(o)
	}
	var images []*index.Image
	if err == nil {
		images, err = index.ResolveImages(cmd.Context(), client, from, ref, want)
	}
	if err != nil {
		done()
		return nil, nil, err
	}
	resolver := index.NewResolver(client, store, slog.New(slog.NewTextHandler(cmd.ErrOrStderr(), nil)))
	for _, image := range images {
		list = append(list, &indexer{x, c, client, store, resolver, image, ref, len(images) > 1})
	}
	return list, done, nil
}

// store opens the directory of indexes.
func (x *indexSettings) store(c *config.Config) (*index.Store, error) {
	dir := x.storeDir
	if dir == "" && x.euid == 0 {
		dir = filepath.Join(c.Root, "index")
	}
	if dir == "" {
		cache, err := os.UserCacheDir()
		if err != nil {
			return nil, fmt.Errorf("directory of indexes: %w: use --store", err)
		}
		dir = filepath.Join(cache, "lacuna", "index")
	}
	return index.OpenStore(dir)
}
