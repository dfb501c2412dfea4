package erofs

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"path"
)

// Options are those of ReadTar.
type Options struct {
	Limits Limits // the zero value means DefaultLimits

	// Data is called for every extent of the blob, in the order of offsets, with the
	// extent's bytes. Bytes that it does not read are skipped. It may be nil.
	Data func(e Extent, r io.Reader) error

	// Implied is called for a directory that the tar names only as part of
	// longer names, and may set its attributes: containerd copies them from
	// the layers below. It may be nil.
	Implied func(path string, dir *Inode)
}

// ReadTar reads a layer to the end of its tar. The rules are those of containerd's
// pkg/archive on overlayfs, and a tar that it refuses is refused. Errors that match
// [ErrUnsupported] are about layers that containerd might be able to unpack.
func ReadTar(ctx context.Context, r io.Reader, opts Options) (*Tree, error) {
	if opts.Limits == (Limits{}) {
		opts.Limits = DefaultLimits
	}
	t := newTree(opts)
	src := &tarSource{r: r}
	tr := tar.NewReader(src)
	for {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		src.startHeaders()
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return t, t.finish()
		}
		if err != nil {
			return nil, fmt.Errorf("tar at offset %d: %w", src.off, err)
		}
		headers := src.stopHeaders()
		t.spent.read = src.off
		n, err := t.entry(h)
		if err == nil && h.Typeflag == tar.TypeReg {
			err = t.readContent(n, h, headers, src)
		}
		if err != nil {
			return nil, fmt.Errorf("tar entry %.200q: %w", h.Name, err)
		}
	}
}

// entry adds one tar entry to the tree and returns its inode, nil if it has
// none. The order of its steps is that of containerd's applyNaive, so that later
// entries have the same effect on earlier ones.
func (t *Tree) entry(h *tar.Header) (*Inode, error) {
	parent, base := path.Split(path.Clean(h.Name))
	components, err := t.resolve(parent)
	if err != nil {
		return nil, err
	}
	if base == "." || base == ".." || base == "" {
		return nil, nil // the root itself, which is not the layer's
	}
	dir, err := t.mkdirs(components)
	if err != nil {
		return nil, err
	}
	if isWhiteout(base) {
		return nil, t.whiteout(dir, base, h)
	}
	n := dir.children[base]
	if n == nil || !n.isDir() || h.Typeflag != tar.TypeDir {
		delete(dir.children, base)
		if h.Typeflag == tar.TypeXGlobalHeader {
			return nil, nil // its records are not applied; its name was
		}
		if n, err = t.inode(h); err != nil {
			return nil, err
		}
		if err := t.add(dir, base, n); err != nil {
			return nil, err
		}
	}
	if n.isDir() {
		n.implied = false
		t.dirs = append(t.dirs, dirTime{h.Name, boundTime(h.ModTime)})
	}
	return n, t.setAttributes(n, h)
}

// inode creates the inode of an entry, or finds it where the entry is a hard link.
func (t *Tree) inode(h *tar.Header) (*Inode, error) {
	n := &Inode{}
	switch h.Typeflag {
	case tar.TypeLink:
		return t.linked(h.Linkname)
	case tar.TypeReg: // archive/tar turns the old TypeRegA into this
		n.Mode, n.Size = ModeRegular, h.Size
	case tar.TypeDir:
		n.Mode = ModeDir
	case tar.TypeSymlink:
		if err := checkTarget(h.Linkname); err != nil {
			return nil, err
		}
		n.Mode, n.Target = ModeSymlink, h.Linkname
	case tar.TypeChar, tar.TypeBlock, tar.TypeFifo:
		if h.Devmajor < 0 || h.Devmajor > math.MaxUint32 || h.Devminor < 0 || h.Devminor > math.MaxUint32 {
			return nil, fmt.Errorf("%w device number %d:%d", ErrInvalid, h.Devmajor, h.Devminor)
		}
		if h.Devmajor >= 1<<12 || h.Devminor >= 1<<20 { // mknod(2) drops upper bits
			return nil, fmt.Errorf("device number %d:%d %w", h.Devmajor, h.Devminor, ErrUnsupported)
		}
		switch h.Typeflag {
		case tar.TypeFifo:
			n.Mode = ModeFifo
			return n, nil
		case tar.TypeChar:
			n.Mode = ModeChar
		case tar.TypeBlock:
			n.Mode = ModeBlock
		}
		n.Major, n.Minor = uint32(h.Devmajor), uint32(h.Devminor)
	default:
		return nil, fmt.Errorf("%w entry type %q", ErrInvalid, h.Typeflag)
	}
	return n, nil
}

// linked finds the inode that a hard link leads to. Symlinks are followed within the
// path, but not at its end.
func (t *Tree) linked(target string) (*Inode, error) {
	parent, base := path.Split(target)
	components, err := t.resolve(parent)
	if err != nil {
		return nil, err
	}
	to := t.root
	for _, c := range components {
		if to = to.children[c]; to == nil {
			break
		}
	}
	if to != nil {
		to = to.children[base]
	}
	switch {
	case to == nil:
		return nil, fmt.Errorf("%w hard link to %.200q: no such file in the layer", ErrInvalid, target)
	case to.isDir():
		return nil, fmt.Errorf("%w hard link to directory %.200q", ErrInvalid, target)
	}
	delete(to.Xattrs, capability) // the chown(2) that follows drops it
	return to, nil
}

// dirTime is the modification time of a directory's entry. It is set at the end of the
// layer, since entries in the directory change it.
type dirTime struct {
	name  string
	mtime Time
}

// finish sets the times of directories and counts the names of every inode.
// Like containerd it looks the directories up by name, at the end of the layer.
func (t *Tree) finish() error {
	for _, d := range t.dirs {
		components, err := t.resolve(path.Clean(d.name))
		if err != nil {
			return fmt.Errorf("time of directory %.200q: %w", d.name, err)
		}
		n := t.root
		for _, c := range components {
			if n = n.children[c]; n == nil {
				return fmt.Errorf("%w layer: directory %.200q is gone at its end", ErrInvalid, d.name)
			}
		}
		n.Mtime = d.mtime
	}
	t.dirs = nil
	t.walk(func(dir, _ *Inode) {
		dir.nlink = 2
		for _, c := range dir.children {
			if c.isDir() {
				dir.nlink++
			} else {
				c.nlink++
			}
		}
	})
	return nil
}
