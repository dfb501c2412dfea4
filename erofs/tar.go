package erofs

import (
	"archive/tar"
	"context"
	"fmt"
	"io"
	"math"
	"path"
	"strings"
	"time"
)

// Options are what ReadTar can be told.
type Options struct {
	Limits Limits // the zero value means DefaultLimits

	// Data is called for every extent of the blob, in order of its offset,
	// with the bytes. What it leaves unread is skipped. It may be nil.
	Data func(e Extent, r io.Reader) error

	// Implied is called for a directory that the tar names only as part of
	// longer names, and may set its attributes: containerd's overlayfs copies
	// them from the layers below. It may be nil.
	Implied func(path string, dir *Inode)
}

// OCI image-spec, layer.md, "Whiteouts".
const (
	whiteoutPrefix = ".wh."
	opaqueMarker   = ".wh..wh..opq"
	opaqueXattr    = "trusted.overlay.opaque"

	xattrRecord = "SCHILY.xattr."
)

// ReadTar reads a layer to the end of its tar. The rules are those of
// containerd's pkg/archive on overlayfs; old GNU sparse files, which it
// refuses, are read as well.
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
		if err == io.EOF {
			t.finish()
			return t, nil
		}
		if err != nil {
			return nil, fmt.Errorf("tar at offset %d: %w", src.off, err)
		}
		headers := src.stopHeaders()
		if err := t.entry(h, headers, src); err != nil {
			return nil, fmt.Errorf("tar entry %.200q: %w", h.Name, err)
		}
	}
}

// entry adds one tar entry to the tree.
func (t *Tree) entry(h *tar.Header, headers []byte, src *tarSource) error {
	if h.Typeflag == tar.TypeXGlobalHeader {
		return nil
	}
	if len(h.Name) > maxPath {
		return fmt.Errorf("%w name: %d bytes, at most %d", ErrInvalid, len(h.Name), maxPath)
	}
	parent, base := path.Split(path.Clean(h.Name))
	components, err := t.resolve(parent)
	if err != nil {
		return err
	}
	if base == "." || base == ".." || base == "" {
		return nil // the root itself, which the layer does not own
	}
	dir, err := t.mkdirs(components)
	if err != nil {
		return err
	}
	if strings.HasPrefix(base, whiteoutPrefix) {
		return t.whiteout(dir, base, h)
	}
	n, err := t.inode(dir, base, h)
	if err != nil {
		return err
	}
	if err := t.setAttributes(n, h); err != nil {
		return err
	}
	if h.Typeflag != tar.TypeLink && n.Mode&ModeType == ModeRegular {
		return t.readData(n, h, headers, src)
	}
	return nil
}

func (t *Tree) whiteout(dir *Inode, base string, h *tar.Header) error {
	if base == opaqueMarker {
		return t.setXattr(dir, opaqueXattr, "y")
	}
	name := base[len(whiteoutPrefix):]
	if name == "" || name == "." || name == ".." {
		return fmt.Errorf("%w whiteout", ErrInvalid)
	}
	uid, gid, err := owner(h)
	if err != nil {
		return err
	}
	// overlayfs's whiteout: a character device 0/0.
	return t.add(dir, name, &Inode{Mode: ModeChar, UID: uid, GID: gid, Mtime: boundTime(h.ModTime)})
}

// inode finds or makes the inode that an entry is about.
func (t *Tree) inode(dir *Inode, base string, h *tar.Header) (*Inode, error) {
	if h.Typeflag == tar.TypeLink {
		return t.hardLink(dir, base, h)
	}
	n := &Inode{}
	switch h.Typeflag {
	case tar.TypeReg, tar.TypeGNUSparse, 0: // 0 is the old TypeRegA
		n.Mode, n.Size = ModeRegular, h.Size
	case tar.TypeDir:
		if old := dir.children[base]; old != nil && old.isDir() {
			old.implied = false
			return old, nil
		}
		n.Mode, n.children = ModeDir, map[string]*Inode{}
	case tar.TypeSymlink:
		if h.Linkname == "" || len(h.Linkname) > maxPath {
			return nil, fmt.Errorf("%w symlink target of %d bytes", ErrInvalid, len(h.Linkname))
		}
		n.Mode, n.Target = ModeSymlink, h.Linkname
	case tar.TypeChar, tar.TypeBlock:
		if h.Devmajor < 0 || h.Devmajor > math.MaxUint32 || h.Devminor < 0 || h.Devminor > math.MaxUint32 {
			return nil, fmt.Errorf("%w device number %d:%d", ErrInvalid, h.Devmajor, h.Devminor)
		}
		n.Mode, n.Major, n.Minor = ModeChar, uint32(h.Devmajor), uint32(h.Devminor)
		if h.Typeflag == tar.TypeBlock {
			n.Mode = ModeBlock
		}
	case tar.TypeFifo:
		n.Mode = ModeFifo
	default:
		return nil, fmt.Errorf("%w entry type %q", ErrInvalid, h.Typeflag)
	}
	return n, t.add(dir, base, n)
}

func (t *Tree) hardLink(dir *Inode, base string, h *tar.Header) (*Inode, error) {
	parent, target := path.Split(h.Linkname)
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
		to = to.children[target]
	}
	switch {
	case to == nil || to == dir.children[base]:
		return nil, fmt.Errorf("%w hard link to %q: no such file in the layer", ErrInvalid, h.Linkname)
	case to.isDir():
		return nil, fmt.Errorf("%w hard link to directory %q", ErrInvalid, h.Linkname)
	}
	if to.Mode&ModeType == ModeRegular {
		delete(to.Xattrs, "security.capability") // chown(2) drops it
	}
	return to, t.add(dir, base, to)
}

// setAttributes applies an entry's owner, mode, time and xattrs; those of a
// hard link's entry go to the inode it shares.
func (t *Tree) setAttributes(n *Inode, h *tar.Header) error {
	uid, gid, err := owner(h)
	if err != nil {
		return err
	}
	n.UID, n.GID, n.Mtime = uid, gid, boundTime(h.ModTime)
	if n.Mode&ModeType == ModeSymlink {
		n.Mode = ModeSymlink | 0o777
	} else {
		n.Mode = n.Mode&ModeType | uint16(h.Mode&0o7777)
	}
	for key, value := range h.PAXRecords {
		name, ok := strings.CutPrefix(key, xattrRecord)
		if !ok || !keepsXattr(n, name) {
			continue
		}
		if err := t.setXattr(n, name, value); err != nil {
			return err
		}
	}
	return nil
}

func owner(h *tar.Header) (uid, gid uint32, err error) {
	if h.Uid < 0 || h.Uid > math.MaxUint32 || h.Gid < 0 || h.Gid > math.MaxUint32 {
		return 0, 0, fmt.Errorf("%w owner %d:%d", ErrInvalid, h.Uid, h.Gid)
	}
	return uint32(h.Uid), uint32(h.Gid), nil
}

// boundTime is containerd's: times before 1970 become 1970, and so do those
// past what nanoseconds in 63 bits can hold.
func boundTime(m time.Time) Time {
	if m.Before(time.Unix(0, 0)) || m.After(time.Unix(0, math.MaxInt64)) {
		return Time{}
	}
	return Time{Sec: m.Unix(), Nsec: uint32(m.Nanosecond())}
}

// finish counts the names of every inode.
func (t *Tree) finish() {
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
}
