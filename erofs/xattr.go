package erofs

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// Name prefixes, from fs/erofs/erofs_fs.h and include/uapi/linux/xattr.h, the longer
// ones first.
var xattrPrefixes = []struct {
	name  string
	index uint8
}{
	{aclAccess, xattrACLAccess},
	{aclDefault, xattrACLDefault},
	{"user.", xattrUser},
	{"trusted.", xattrTrusted},
	{"security.", xattrSecurity},
}

// capability is the attribute in which the kernel keeps a file's capabilities.
const capability = "security.capability"

// keepsXattr reports whether containerd's apply would set the attribute: none of
// trusted., user. on files and directories only, and no name that a filesystem refuses
// with ENOTSUP. It fails where setxattr(2) fails in another way, which ends containerd's
// apply.
func keepsXattr(n *Inode, name, value string) (bool, error) {
	invalid := func(why string) (bool, error) {
		return false, fmt.Errorf("%w extended attribute %.40q: %s", ErrInvalid, name, why)
	}
	if strings.HasPrefix(name, "trusted.") {
		return false, nil
	}
	if name == "" || len(name) > maxName || len(value) > maxXattr {
		return invalid(fmt.Sprintf("name of %d bytes, value of %d", len(name), len(value)))
	}
	_, suffix, ok := splitXattr(name)
	switch {
	case name == aclAccess || name == aclDefault:
		return n.Mode&ModeType != ModeSymlink, nil
	case !ok:
		return false, nil
	case suffix == "":
		return invalid("no name after the prefix")
	case strings.HasPrefix(name, "user."):
		return n.isDir() || n.Mode&ModeType == ModeRegular, nil
	case name == capability && !validCapability(value):
		return invalid("not capabilities of version 2 or 3")
	}
	return true, nil
}

// validCapability is validheader of security/commoncap.c.
func validCapability(v string) bool {
	if len(v) < 4 || v[0]&^1 != 0 || v[1] != 0 || v[2] != 0 { // VFS_CAP_FLAGS_EFFECTIVE
		return false
	}
	return len(v) == 20 && v[3] == 2 || len(v) == 24 && v[3] == 3
}

// splitXattr returns the number of a name's prefix and the rest of the name; ok is
// false where EROFS has no number for the prefix.
func splitXattr(name string) (index uint8, suffix string, ok bool) {
	for _, p := range xattrPrefixes {
		if suffix, ok := strings.CutPrefix(name, p.name); ok {
			exact := strings.HasPrefix(p.name, "system.")
			return p.index, suffix, !exact || suffix == ""
		}
	}
	return 0, "", false
}

func (t *Tree) setXattr(n *Inode, name, value string) error {
	if n.Xattrs == nil {
		n.Xattrs = map[string]string{}
	}
	if old, ok := n.Xattrs[name]; ok {
		n.xattrSize -= xattrRoom(name, old)
	}
	n.Xattrs[name] = value
	if n.xattrSize += xattrRoom(name, value); n.xattrSize > t.opts.Limits.XattrSize {
		return fmt.Errorf("extended attributes of more than %d bytes %w", t.opts.Limits.XattrSize, ErrUnsupported)
	}
	return nil
}

// SetXattrs gives a directory the attributes of one in another layer, except trusted.,
// which have a meaning in that layer only: containerd does not copy them (copyUpXAttrs in
// pkg/archive).
func (n *Inode) SetXattrs(list []Xattr) {
	for _, x := range list {
		if strings.HasPrefix(x.Name, "trusted.") {
			continue
		}
		if n.Xattrs == nil {
			n.Xattrs = map[string]string{}
		}
		n.xattrSize += xattrRoom(x.Name, x.Value)
		n.Xattrs[x.Name] = x.Value
	}
}

// xattrRoom is an upper bound of the bytes that an attribute takes.
func xattrRoom(name, value string) int { return xattrEntrySize + len(name) + len(value) + 3 }

type xattr struct{ name, value string }

// encode appends struct erofs_xattr_entry with its name and value.
func (x xattr) encode(b []byte) []byte {
	index, suffix, _ := splitXattr(x.name)
	var e [xattrEntrySize]byte
	e[entryNameLen], e[entryNameIndex] = uint8(len(suffix)), index
	binary.LittleEndian.PutUint16(e[entryValueSize:], uint16(len(x.value)))
	b = append(b, e[:]...)
	b = append(b, suffix...)
	b = append(b, x.value...)
	return append(b, make([]byte, alignUp(len(b), xattrUnit)-len(b))...)
}

// sharedXattrs is the area of the attributes that several inodes refer to.
type sharedXattrs struct {
	area []byte
	at   int64            // where the area lies in the bootstrap
	id   map[xattr]uint32 // offset in the area, in xattrUnit
}

// shareXattrs collects the attributes that at least two inodes have in common,
// where a reference of 4 bytes is shorter than the entry.
func shareXattrs(inodes []*Inode) *sharedXattrs {
	uses := map[xattr]int{}
	for _, n := range inodes {
		for k, v := range n.Xattrs {
			uses[xattr{k, v}]++
		}
	}
	s := &sharedXattrs{id: map[xattr]uint32{}}
	byName := func(a, b xattr) int {
		return cmp.Or(strings.Compare(a.name, b.name), strings.Compare(a.value, b.value))
	}
	for _, x := range slices.SortedFunc(maps.Keys(uses), byName) {
		if uses[x] > 1 {
			s.id[x] = uint32(len(s.area) / xattrUnit)
			s.area = x.encode(s.area)
		}
	}
	return s
}

// body encodes an inode's attributes: struct erofs_xattr_ibody_header, the
// shared ids, the inline entries. It is empty for an inode with none. Its size
// does not depend on where the area is.
func (s *sharedXattrs) body(n *Inode) []byte {
	if len(n.Xattrs) == 0 {
		return nil
	}
	b := make([]byte, xattrHeaderSize)
	var inline []byte
	for _, name := range slices.Sorted(maps.Keys(n.Xattrs)) {
		x := xattr{name, n.Xattrs[name]}
		if id, ok := s.id[x]; ok && b[xattrSharedCount] < maxSharedXattrs {
			b[xattrSharedCount]++
			b = binary.LittleEndian.AppendUint32(b, uint32(s.at/xattrUnit)+id)
		} else {
			inline = x.encode(inline)
		}
	}
	return append(b, inline...)
}
