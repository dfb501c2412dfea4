package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	"github.com/spf13/cobra"

	"github.com/lacuna-snapshotter/lacuna/config"
	"github.com/lacuna-snapshotter/lacuna/erofs"
	"github.com/lacuna-snapshotter/lacuna/fetcher/index"
	"github.com/lacuna-snapshotter/lacuna/fetcher/registry"
	"github.com/lacuna-snapshotter/lacuna/fetcher/spans"
	"github.com/lacuna-snapshotter/lacuna/ondemand"
	"github.com/lacuna-snapshotter/lacuna/ondemand/cachefiles"
)

// serveCommand is a daemon for the kernel's cachefiles by itself, without
// containerd: it answers for an image's layers, or for EROFS images in a directory,
// and prints how to mount them.
func serveCommand() *cobra.Command {
	c := &standalone{}
	cmd := &cobra.Command{
		Use:   "serve-cachefiles --dir CACHE (--image IMAGE | --files DIRECTORY)",
		Short: "Serve EROFS images over the kernel's cachefiles, without containerd",
		Long: `Serve EROFS images over the kernel's cachefiles, without containerd.

The command binds the cache, prints a mount command for each image, and serves until
it is interrupted. Layers that have no index get one first. Credentials are those of
registry.docker_config.`,
		Example: `  lacuna-snapshotter serve-cachefiles --dir /var/cache/lacuna --image registry.example/app:1
  lacuna-snapshotter serve-cachefiles --dir /var/cache/lacuna --files /srv/erofs`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return c.run(cmd) },
	}
	f := cmd.Flags()
	f.StringVar(&c.configPath, "config", config.Path, "configuration file")
	f.StringVar(&c.dir, "dir", "", "directory of the kernel's cache, on ext4, xfs or btrfs")
	f.StringVar(&c.image, "image", "", "image whose layers are served")
	f.StringVar(&c.files, "files", "", "directory of EROFS images, each served under its file name")
	f.StringVar(&c.domain, "domain", "lacuna", "EROFS domain_id, in which the mounts share objects")
	f.StringVar(&c.storeDir, "store", "", "directory of indexes (default: index in --dir)")
	f.StringVar(&c.platform, "platform", platforms.DefaultString(), "`platform` of a multi-platform image; this machine's without the flag")
	f.BoolVar(&c.plainHTTP, "plain-http", false, "use HTTP for registries")
	_ = cmd.MarkFlagRequired("dir") // it is defined above
	cmd.MarkFlagsOneRequired("image", "files")
	cmd.MarkFlagsMutuallyExclusive("image", "files")
	return cmd
}

// standalone is serve-cachefiles' flags, then what they lead to.
type standalone struct {
	configPath, dir, image, files, domain, storeDir, platform string
	plainHTTP                                                 bool

	config *config.Config
	engine *ondemand.Engine
	server *cachefiles.Server
	log    *slog.Logger
}

// run serves until ctx ends.
func (c *standalone) run(cmd *cobra.Command) (err error) {
	ctx, out := cmd.Context(), cmd.OutOrStdout()
	if c.config, err = config.Load(c.configPath); err != nil {
		return err
	}
	if c.dir, err = filepath.Abs(c.dir); err != nil {
		return err
	}
	if c.storeDir == "" {
		c.storeDir = filepath.Join(c.dir, "index")
	}
	c.log = slog.New(slog.NewTextHandler(cmd.ErrOrStderr(), nil))
	if c.engine, err = ondemand.New(ondemand.Options{}); err != nil {
		return err
	}
	device, err := cachefiles.Open(cachefiles.Config{Dir: c.dir, Tag: "lacuna"})
	if err != nil {
		return err
	}
	c.server, err = cachefiles.Serve(device, cachefiles.Options{Dir: c.dir, Engine: c.engine, Log: c.log})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.server.Close()) }()
	add := c.addFiles
	if c.image != "" {
		add = c.addImage
	}
	mounts, err := add(ctx)
	if err != nil {
		return err
	}
	c.server.Recover()
	fmt.Fprintln(out, "serving; mount with")
	for _, m := range mounts {
		fmt.Fprintf(out, "  mount -t erofs -o ro,%s none /mnt\n", m.Options())
	}
	select {
	case <-ctx.Done():
		return nil
	case err := <-c.server.Failed():
		return err
	}
}

// addImage makes an image's layers known. Layers that have no index anywhere get one
// first.
func (c *standalone) addImage(ctx context.Context) (mounts []erofs.Fscache, err error) {
	want, err := index.ParsePlatforms(c.platform)
	if err != nil {
		return nil, err
	}
	c.config.Registry.PlainHTTP = c.config.Registry.PlainHTTP || c.plainHTTP
	client, err := registry.New(registryOptions(c.config, c.log))
	if err != nil {
		return nil, err
	}
	store, err := index.OpenStore(c.storeDir)
	if err != nil {
		return nil, err
	}
	images, err := index.ResolveImages(ctx, client, nil, c.image, want)
	if err != nil {
		return nil, err
	}
	if len(images) > 1 {
		return nil, errors.New("--platform: one platform can be served")
	}
	image := images[0]
	if err := c.fetchIndexes(ctx, client, image, store); err != nil {
		return nil, err
	}
	dir := filepath.Join(c.dir, "bootstraps")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	for _, l := range image.Layers {
		if !l.Indexable() {
			return nil, fmt.Errorf("layer %s is %s: only gzip layers can be served", l.Digest, l.MediaType)
		}
		head, err := store.Head(l.Digest)
		if err != nil {
			return nil, err
		}
		if err := erofs.Check(head.Bootstrap, head.Map.BlobSize); err != nil {
			return nil, err
		}
		name := index.BlobName(l.Digest, digest.FromBytes(head.Bootstrap))
		bootstrap := filepath.Join(dir, name)
		if err := os.WriteFile(bootstrap, head.Bootstrap, 0o600); err != nil {
			return nil, err
		}
		source, err := store.Open(client, c.image, head)
		if err != nil {
			return nil, err
		}
		b, err := c.openBlob(ondemand.Key{Volume: c.domain, Cookie: name}, head.Map.BlobSize, head.Map.SpanSize, source)
		if err != nil {
			return nil, err
		}
		if err := c.server.Attach(b, bootstrap); err != nil {
			return nil, err
		}
		mounts = append(mounts, cachefiles.MountOf(b.Key()))
	}
	return mounts, nil
}

// fetchIndexes brings the heads of an image's indexes into the store: from the
// repository or, where that has none, by making them.
func (c *standalone) fetchIndexes(ctx context.Context, client *registry.Client, image *index.Image, store *index.Store) error {
	resolver := index.NewResolver(client, store, c.log)
	for _, l := range image.Layers {
		err := resolver.Fetch(ctx, index.Want{Ref: c.image, Manifest: image.Manifest.Digest, Layer: l.Digest})
		if errors.Is(err, index.ErrNone) {
			_, err := index.CreateImage(ctx, image, store, index.CreateOptions{
				Build: spans.BuildOptions{SpanSize: int64(c.config.Index.SpanSize), Spacing: int64(c.config.Index.Spacing), Grain: int64(c.config.Index.Grain)},
			})
			return err
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (c *standalone) openBlob(key ondemand.Key, size, span int64, source ondemand.Source) (*ondemand.Blob, error) {
	backing, err := c.server.Backing(key, size, span)
	if err != nil {
		return nil, err
	}
	return c.engine.Open(ondemand.BlobConfig{Key: key, Size: size, SpanSize: span, Source: source, Backing: backing})
}

// addFiles makes the EROFS images of a directory known.
func (c *standalone) addFiles(context.Context) (mounts []erofs.Fscache, err error) {
	entries, err := os.ReadDir(c.files)
	if err != nil {
		return nil, err
	}
	for _, d := range entries {
		if !d.Type().IsRegular() || strings.ContainsAny(d.Name(), ", ") {
			continue
		}
		f, err := os.Open(filepath.Join(c.files, d.Name()))
		if err != nil {
			return nil, err
		}
		info, err := f.Stat()
		if err != nil {
			return nil, err
		}
		source := cachefiles.NewFile(f, info.Size())
		if _, err := c.openBlob(ondemand.Key{Volume: c.domain, Cookie: d.Name()}, info.Size(), cachefiles.FileSpan, source); err != nil {
			return nil, err
		}
		mounts = append(mounts, erofs.Fscache{ID: d.Name(), Domain: c.domain})
	}
	if len(mounts) == 0 {
		return nil, fmt.Errorf("%s holds no file to serve", c.files)
	}
	return mounts, nil
}
