package erofs

import (
	"encoding/binary"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// Name prefixes, from fs/erofs/erofs_fs.h and the kernel's xattr.h. Longer
// ones come first.
var xattrPrefixes = []struct {
	name  string
	index uint8
}{
	{"system.posix_acl_access", 2},
	{"system.posix_acl_default", 3},
	{"user.", 1},
	{"trusted.", 4},
	{"security.", 6},
}

// keepsXattr says whether containerd's apply would set the attribute: nothing
// of trusted., user. on files and directories only, and no name that a
// filesystem answers with ENOTSUP.
func keepsXattr(n *Inode, name string) bool {
	switch {
	case strings.HasPrefix(name, "trusted."):
		return false
	case strings.HasPrefix(name, "user."):
		return n.isDir() || n.Mode&ModeType == ModeRegular
	case strings.HasPrefix(name, "system.posix_acl_"):
		return n.Mode&ModeType != ModeSymlink
	}
	_, _, ok := splitXattr(name)
	return ok
}

func splitXattr(name string) (index uint8, suffix string, ok bool) {
	for _, p := range xattrPrefixes {
		if suffix, ok := strings.CutPrefix(name, p.name); ok {
			exact := strings.HasPrefix(p.name, "system.")
			return p.index, suffix, exact == (suffix == "")
		}
	}
	return 0, "", false
}

func (t *Tree) setXattr(n *Inode, name, value string) error {
	if n.Xattrs == nil {
		n.Xattrs = map[string]string{}
	}
	n.Xattrs[name] = value
	size := 0
	for k, v := range n.Xattrs {
		if len(k) > maxName {
			return fmt.Errorf("%w extended attribute %.40q...: name of %d bytes", ErrInvalid, k, len(k))
		}
		size += xattrEntrySize + len(k) + len(v) + 3
	}
	if size > t.opts.Limits.XattrSize {
		return fmt.Errorf("%w extended attributes: more than %d bytes", ErrInvalid, t.opts.Limits.XattrSize)
	}
	return nil
}

type xattr struct{ name, value string }

// encode appends struct erofs_xattr_entry with its name and value.
func (x xattr) encode(b []byte) []byte {
	index, suffix, _ := splitXattr(x.name)
	b = append(b, uint8(len(suffix)), index)
	b = binary.LittleEndian.AppendUint16(b, uint16(len(x.value)))
	b = append(b, suffix...)
	b = append(b, x.value...)
	return append(b, make([]byte, alignUp(len(b), 4)-len(b))...)
}

// sharedXattrs is the area of attributes that several inodes refer to.
type sharedXattrs struct {
	area []byte
	id   map[xattr]uint32 // offset from xattr_blkaddr, in 4-byte units
}

// shareXattrs collects the attributes that at least two inodes have in common,
// where a reference of 4 bytes is shorter than the entry. The area lies at the
// given offset.
func (t *Tree) shareXattrs(inodes []*Inode, at int64) *sharedXattrs {
	uses := map[xattr]int{}
	for _, n := range inodes {
		for k, v := range n.Xattrs {
			uses[xattr{k, v}]++
		}
	}
	s := &sharedXattrs{id: map[xattr]uint32{}}
	byName := func(a, b xattr) int {
		return strings.Compare(a.name+"\x00"+a.value, b.name+"\x00"+b.value)
	}
	for _, x := range slices.SortedFunc(maps.Keys(uses), byName) {
		if uses[x] > 1 {
			s.id[x] = uint32(at+int64(len(s.area))) / 4
			s.area = x.encode(s.area)
		}
	}
	return s
}

// body encodes an inode's attributes: struct erofs_xattr_ibody_header, the
// shared ids, the inline entries. It is empty for an inode with none.
func (s *sharedXattrs) body(n *Inode) []byte {
	if len(n.Xattrs) == 0 {
		return nil
	}
	b := make([]byte, xattrHeaderSize)
	var inline []byte
	for _, name := range slices.Sorted(maps.Keys(n.Xattrs)) {
		x := xattr{name, n.Xattrs[name]}
		if id, ok := s.id[x]; ok && b[4] < maxSharedXattrs {
			b[4]++ // h_shared_count
			b = binary.LittleEndian.AppendUint32(b, id)
		} else {
			inline = x.encode(inline)
		}
	}
	return append(b, inline...)
}
