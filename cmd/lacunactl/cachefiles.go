package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	"github.com/opencontainers/go-digest"
	"github.com/spf13/cobra"

	"github.com/lacuna-snapshotter/lacuna/erofs"
	"github.com/lacuna-snapshotter/lacuna/fetcher/index"
	"github.com/lacuna-snapshotter/lacuna/ondemand"
	"github.com/lacuna-snapshotter/lacuna/ondemand/cachefiles"
)

// serveCommand is the daemon of the kernel's series by itself, without
// containerd: it answers cachefiles for an image's layers, or for EROFS images
// in a directory, and says how to mount them.
func serveCommand(s *settings) *cobra.Command {
	x := &indexSettings{settings: s, euid: os.Geteuid()}
	c := &serveSettings{indexSettings: x}
	cmd := &cobra.Command{
		Use:   "serve-cachefiles --dir CACHE (--image IMAGE | --files DIRECTORY)",
		Short: "serve EROFS over the kernel's cachefiles, without containerd",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return c.run(cmd)
		},
	}
	f := cmd.Flags()
	f.StringVar(&c.dir, "dir", "", "directory of the kernel's cache, on ext4, xfs or btrfs")
	f.StringVar(&c.imageRef, "image", "", "image whose layers are served")
	f.StringVar(&c.files, "files", "", "directory of EROFS images, each served under its file name")
	f.StringVar(&c.domain, "domain", "lacuna", "domain that the mounts share objects in")
	f.StringVar(&x.storeDir, "store", "", "directory of indexes (default: index in --dir)")
	x.imageFlags(cmd)
	_ = cmd.MarkFlagRequired("dir") // it is there
	cmd.MarkFlagsOneRequired("image", "files")
	cmd.MarkFlagsMutuallyExclusive("image", "files")
	return cmd
}

type serveSettings struct {
	*indexSettings
	dir, imageRef, files, domain string
}

// run serves until ctx ends.
func (c *serveSettings) run(cmd *cobra.Command) (err error) {
	ctx, out, errOut := cmd.Context(), cmd.OutOrStdout(), cmd.ErrOrStderr()
	if c.dir, err = filepath.Abs(c.dir); err != nil {
		return err
	}
	if c.storeDir == "" {
		c.storeDir = filepath.Join(c.dir, "index")
	}
	engine, err := ondemand.New(ondemand.Options{})
	if err != nil {
		return err
	}
	device, err := cachefiles.Open(cachefiles.Config{Dir: c.dir, Tag: "lacuna"})
	if err != nil {
		return err
	}
	server, err := cachefiles.Serve(device, cachefiles.Options{Dir: c.dir, Engine: engine, Log: slog.New(slog.NewTextHandler(errOut, nil))})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, server.Close()) }()
	add := c.addFiles
	if c.imageRef != "" {
		add = c.addImage
	}
	mounts, err := add(cmd, engine, server)
	if err != nil {
		return err
	}
	server.Recover()
	fmt.Fprintln(out, "serving; mount with")
	for _, m := range mounts {
		fmt.Fprintf(out, "  mount -t erofs -o ro,%s none /mnt\n", m.Options())
	}
	select {
	case <-ctx.Done():
		return nil
	case err := <-server.Failed():
		return err
	}
}

// addImage makes an image's layers known. One that has no index anywhere gets
// it first.
func (c *serveSettings) addImage(cmd *cobra.Command, engine *ondemand.Engine, server *cachefiles.Server) (mounts []erofs.Fscache, err error) {
	ctx := cmd.Context()
	list, done, err := c.open(cmd, c.imageRef)
	if err != nil {
		return nil, err
	}
	context.AfterFunc(ctx, done)
	if len(list) > 1 {
		return nil, errors.New("--platform: one platform can be served")
	}
	e := list[0]
	if err := e.fetchIndexes(ctx); err != nil {
		return nil, err
	}
	dir := filepath.Join(c.dir, "bootstraps")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	for _, l := range e.image.Layers {
		if !l.Indexable() {
			return nil, fmt.Errorf("layer %s is %s: only gzip layers can be served", l.Digest, l.MediaType)
		}
		head, err := e.store.Head(l.Digest)
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
		source, err := e.store.Open(e.client, c.imageRef, head)
		if err != nil {
			return nil, err
		}
		b, err := openBlob(engine, server, ondemand.Key{Volume: c.domain, Cookie: name}, head.Map.BlobSize, head.Map.SpanSize, source)
		if err != nil {
			return nil, err
		}
		if err := server.Attach(b, bootstrap); err != nil {
			return nil, err
		}
		mounts = append(mounts, cachefiles.MountOf(b.Key()))
	}
	return mounts, nil
}

// fetchIndexes brings the heads of an image's indexes into the store: from the
// repository or, where that has none, by making them.
func (e *indexer) fetchIndexes(ctx context.Context) error {
	for _, l := range e.image.Layers {
		err := e.resolver.Fetch(ctx, e.want(l))
		if errors.Is(err, index.ErrNone) {
			_, err := index.CreateImage(ctx, e.image, e.store, index.CreateOptions{Build: buildOptions(e.config)})
			return err
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func openBlob(engine *ondemand.Engine, server *cachefiles.Server, key ondemand.Key, size, span int64, source ondemand.Source) (*ondemand.Blob, error) {
	store, err := server.Store(key, size, span)
	if err != nil {
		return nil, err
	}
	return engine.Open(ondemand.BlobConfig{Key: key, Size: size, SpanSize: span, Source: source, Store: store})
}

// addFiles makes the EROFS images of a directory known.
func (c *serveSettings) addFiles(_ *cobra.Command, engine *ondemand.Engine, server *cachefiles.Server) (mounts []erofs.Fscache, err error) {
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
		if _, err := openBlob(engine, server, ondemand.Key{Volume: c.domain, Cookie: d.Name()}, info.Size(), cachefiles.FileSpan, source); err != nil {
			return nil, err
		}
		mounts = append(mounts, erofs.Fscache{ID: d.Name(), Domain: c.domain})
	}
	if len(mounts) == 0 {
		return nil, fmt.Errorf("%s holds no file to serve", c.files)
	}
	return mounts, nil
}
