package erofs

import (
	"archive/tar"
	"fmt"
	"strings"
)

// OCI image-spec, layer.md, "Whiteouts".
const (
	whiteoutPrefix = ".wh."
	opaqueMarker   = ".wh..wh..opq"

	opaqueXattr = "trusted.overlay.opaque"
)

func isWhiteout(base string) bool { return strings.HasPrefix(base, whiteoutPrefix) }

// whiteout does what containerd's OverlayConvertWhiteout does: overlayfs's whiteout is
// a character device 0/0. A whiteout of a name that the layer itself has created is
// unsupported: mknod(2) fails there, on which containerd gives up if the layer is on
// top of another, and removes the file if the layer is the first. A layer does not say
// which of these it is.
func (t *Tree) whiteout(dir *Inode, base string, h *tar.Header) error {
	if base == opaqueMarker {
		return t.setXattr(dir, opaqueXattr, "y")
	}
	name := base[len(whiteoutPrefix):]
	if name == "" || name == "." || name == ".." {
		return fmt.Errorf("%w whiteout", ErrInvalid)
	}
	if dir.children[name] != nil {
		return fmt.Errorf("whiteout after an entry of that name %w", ErrUnsupported)
	}
	uid, gid, err := owner(h)
	if err != nil {
		return err
	}
	return t.add(dir, name, &Inode{Mode: ModeChar, UID: uid, GID: gid, Mtime: boundTime(h.ModTime)})
}
