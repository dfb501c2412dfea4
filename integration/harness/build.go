package harness

import (
	"archive/tar"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// DebianImage builds an image of Debian packages, or finds the layers of an earlier
// build in .cache/images. The files of integration/images/NAME become its last layer,
// with the program that it runs.
func (e *Env) DebianImage(ctx context.Context, name string, packages ...string) (*Image, error) {
	images, dir := filepath.Join(e.Source, "integration", "images"), filepath.Join(e.Source, ".cache", "images", name)
	image := &Image{Cmd: []string{"python3", "/app/main.py"}}
	missing := false
	for i := range 3 {
		path := filepath.Join(dir, fmt.Sprintf("%d.tar.gz", i))
		image.Layers = append(image.Layers, path)
		if _, err := os.Stat(path); err != nil {
			missing = true
		}
	}
	if missing {
		if _, err := e.Run(ctx, filepath.Join(images, "build.sh"), append([]string{dir, filepath.Join(images, name)}, packages...)...); err != nil {
			return nil, err
		}
	}
	return image, nil
}

// Numpy is the image of most tests and of the benchmarks: Debian, python3 and numpy.
func (e *Env) Numpy(ctx context.Context) (*Image, error) {
	return e.DebianImage(ctx, "numpy", "python3", "python3-numpy")
}

// Compile builds a program of integration/images and returns its contents.
func (e *Env) Compile(ctx context.Context, name string) ([]byte, error) {
	out := e.Path("program-" + name)
	cmd := exec.CommandContext(ctx, "go", "build", "-ldflags=-s -w", "-o", out, "./integration/images/"+name)
	cmd.Dir = e.Source
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("build %s: %w\n%s", name, err, out)
	}
	return os.ReadFile(out)
}

// Entry is one name in a layer.
type Entry struct {
	tar.Header
	Content string
}

// File is the entry of a regular file.
func File(name string, mode int64, uid, gid int, content string) Entry {
	h := tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: mode, Uid: uid, Gid: gid, Size: int64(len(content))}
	return Entry{Header: h, Content: content}
}

// Folder is the entry of a directory.
func Folder(name string, mode int64, uid, gid int) Entry {
	return Entry{Header: tar.Header{Typeflag: tar.TypeDir, Name: strings.TrimSuffix(name, "/") + "/", Mode: mode, Uid: uid, Gid: gid}}
}

// PackLayer writes a layer, a gzipped tar.
func PackLayer(path string, entries ...Entry) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	z := gzip.NewWriter(f)
	w := tar.NewWriter(z)
	for _, e := range entries {
		e.ModTime = time.Unix(0, 0)
		werr := w.WriteHeader(&e.Header)
		if werr == nil {
			_, werr = w.Write([]byte(e.Content))
		}
		err = errors.Join(err, werr)
	}
	return errors.Join(err, w.Close(), z.Close(), f.Close())
}
