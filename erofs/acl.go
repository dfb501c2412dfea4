package erofs

import (
	"encoding/binary"
	"fmt"
)

// POSIX ACLs as extended attributes: include/uapi/linux/posix_acl_xattr.h.
const (
	aclAccess  = "system.posix_acl_access"
	aclDefault = "system.posix_acl_default"

	aclVersion    = 2
	aclHeaderSize = 4

	// struct posix_acl_xattr_entry
	aclTag       = 0 // e_tag
	aclPerm      = 2 // e_perm
	aclID        = 4 // e_id
	aclEntrySize = 8

	aclUserObj  = 0x01
	aclUser     = 0x02
	aclGroupObj = 0x04
	aclGroup    = 0x08
	aclMask     = 0x10
	aclOther    = 0x20
)

// checkACL refuses ACLs that would not come out of containerd's apply as they are in
// the tar: chmod(2), which comes after the attributes are set, changes an access ACL
// that does not agree with the mode, and the kernel does not keep one that says no
// more than the mode. (A default ACL is refused when a file is created in its
// directory, since the file would inherit it: see add.)
func (n *Inode) checkACL() error {
	for _, name := range []string{aclAccess, aclDefault} {
		value, ok := n.Xattrs[name]
		if !ok {
			continue
		}
		acl, ok := parseACL([]byte(value))
		if name == aclAccess {
			ok = ok && acl.extended && acl.mode == n.Mode&0o777
		} else {
			ok = ok && n.isDir()
		}
		if !ok {
			return fmt.Errorf("extended attribute %s on mode %#o %w", name, n.Mode, ErrUnsupported)
		}
	}
	return nil
}

// acl is the part of a POSIX ACL that matters here: the mode that it is equivalent to,
// and whether it says more than that.
type acl struct {
	mode     uint16
	extended bool
}

// parseACL reads an ACL; ok is false for one that the kernel would refuse, or would
// return in another form (posix_acl_valid in fs/posix_acl.c).
func parseACL(b []byte) (a acl, ok bool) {
	le := binary.LittleEndian
	if len(b) < aclHeaderSize || le.Uint32(b) != aclVersion || (len(b)-aclHeaderSize)%aclEntrySize != 0 {
		return a, false
	}
	var last uint64
	var seen, group uint16
	for b = b[aclHeaderSize:]; len(b) > 0; b = b[aclEntrySize:] {
		tag, perm, id := le.Uint16(b[aclTag:]), le.Uint16(b[aclPerm:]), le.Uint32(b[aclID:])
		named := tag == aclUser || tag == aclGroup
		order := uint64(tag)<<32 | uint64(id)
		if perm > 7 || named == (id == 0xffffffff) || order <= last {
			return a, false
		}
		last = order
		seen |= tag
		switch tag {
		case aclUserObj:
			a.mode |= perm << 6
		case aclGroupObj, aclMask: // the mask comes after the group and replaces it
			group = perm << 3
		case aclOther:
			a.mode |= perm
		case aclUser, aclGroup:
		default:
			return a, false
		}
	}
	a.mode |= group
	a.extended = seen&aclMask != 0
	const needed = aclUserObj | aclGroupObj | aclOther
	return a, seen&needed == needed && (a.extended || seen&(aclUser|aclGroup) == 0)
}
