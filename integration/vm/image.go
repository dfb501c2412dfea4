package main

import (
	"archive/tar"
	"bufio"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/lacuna-snapshotter/lacuna/integration/harness"
)

// repository puts an image with its index into a registry's directory, and the digests
// of its files beside it.
func (v *vm) repository(ctx context.Context, dir string) (err error) {
	e, err := harness.FromSource()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, e.Close()) }()
	image, err := e.Numpy(ctx)
	if err != nil {
		return err
	}
	if _, err := e.Publish(ctx, image, "/test/numpy:latest", harness.Fast); err != nil {
		return err
	}
	if err := command(ctx, "cp", "-r", e.Path("registry"), filepath.Join(dir, "registry")); err != nil {
		return err
	}
	return expect(image.Layers, filepath.Join(dir, "expected"))
}

// expect writes the digests of the files that layers make together.
func expect(layers []string, file string) error {
	sums := map[string][sha256.Size]byte{}
	for _, layer := range layers {
		if err := apply(layer, sums); err != nil {
			return fmt.Errorf("%s: %w", layer, err)
		}
	}
	f, err := os.Create(file)
	if err != nil {
		return err
	}
	w := bufio.NewWriter(f)
	for _, name := range slices.Sorted(maps.Keys(sums)) {
		fmt.Fprintf(w, "%x  %s\n", sums[name], name)
	}
	return errors.Join(w.Flush(), f.Close())
}

func apply(layer string, sums map[string][sha256.Size]byte) error {
	f, err := os.Open(layer)
	if err != nil {
		return err
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		return err
	}
	for r := tar.NewReader(z); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		name := path.Clean(h.Name)
		if base, ok := strings.CutPrefix(path.Base(name), ".wh."); ok {
			maps.DeleteFunc(sums, func(n string, _ [sha256.Size]byte) bool {
				gone := path.Join(path.Dir(name), base)
				return n == gone || strings.HasPrefix(n, gone+"/")
			})
			continue
		}
		switch h.Typeflag {
		case tar.TypeReg:
			sum := sha256.New()
			if _, err := io.Copy(sum, r); err != nil {
				return err
			}
			sums[name] = [sha256.Size]byte(sum.Sum(nil))
		case tar.TypeLink:
			sums[name] = sums[path.Clean(h.Linkname)]
		default:
			delete(sums, name)
		}
	}
}
