package erofs

import (
	"encoding/binary"
	"strings"
)

// readXattrs reads an inode's attributes, which lie in [at, f.tail).
func (m *Image) readXattrs(f *FileInfo, at int64) error {
	end := f.tail
	if at == end {
		return nil
	}
	if err := m.work(end - at); err != nil {
		return err
	}
	head := m.data[at : at+xattrHeaderSize]
	shared := int64(head[xattrSharedCount])
	at += xattrHeaderSize
	if !zeros(head[xattrNameFilter:xattrSharedCount]) || !zeros(head[xattrSharedCount+1:]) || at+shared*xattrUnit > end {
		return corrupt("inode %d: attribute header %x", f.Nid, head)
	}
	for range shared {
		id := binary.LittleEndian.Uint32(m.data[at:])
		at += xattrUnit
		x, err := m.sharedXattr(id)
		if err != nil {
			return err
		}
		f.Xattrs = append(f.Xattrs, x)
	}
	for at < end {
		x, next, err := m.xattr(at, end)
		if err != nil {
			return err
		}
		f.Xattrs = append(f.Xattrs, x)
		at = next
	}
	return nil
}

// sharedXattr reads an attribute of the shared area, once.
func (m *Image) sharedXattr(id uint32) (Xattr, error) {
	if x, ok := m.shared[id]; ok {
		return x, nil
	}
	x, next, err := m.xattr(int64(id)*xattrUnit, int64(len(m.data)))
	if err != nil {
		return x, err
	}
	if err := m.work(next - int64(id)*xattrUnit); err != nil {
		return x, err
	}
	m.shared[id] = x
	return x, nil
}

// xattr reads struct erofs_xattr_entry at an offset and returns the offset after it. It
// refuses attributes that a layer cannot have: of those that overlayfs itself reads,
// a layer can have only the mark of opaque directories.
func (m *Image) xattr(at, limit int64) (x Xattr, next int64, err error) {
	if at < superOffset+superSize+deviceSlotSize || at+xattrEntrySize > limit {
		return x, 0, corrupt("attribute at %d", at)
	}
	e := m.data[at:]
	prefix := e[entryNameIndex]
	name, value := int64(e[entryNameLen]), int64(binary.LittleEndian.Uint16(e[entryValueSize:]))
	next = alignUp(at+xattrEntrySize+name+value, xattrUnit)
	if next > limit {
		return x, 0, corrupt("attribute at %d", at)
	}
	e = e[xattrEntrySize:]
	x = Xattr{prefixOf(prefix) + string(e[:name]), string(e[name : name+value])}
	index, suffix, ok := splitXattr(x.Name)
	switch {
	case !ok, index != prefix, int64(len(suffix)) != name, len(x.Name) > maxName,
		index == xattrTrusted && (x.Name != opaqueXattr || x.Value != "y"),
		index != xattrACLAccess && index != xattrACLDefault && name == 0,
		strings.Contains(suffix, "\x00"),
		x.Name == capability && !validCapability(x.Value),
		!zeros(m.data[at+xattrEntrySize+name+value : next]):
		return x, 0, corrupt("attribute %.40q at %d", x.Name, at)
	}
	if _, ok := parseACL([]byte(x.Value)); !ok && (index == xattrACLAccess || index == xattrACLDefault) {
		return x, 0, corrupt("attribute %s at %d", x.Name, at)
	}
	return x, next, nil
}

func prefixOf(index uint8) string {
	for _, p := range xattrPrefixes {
		if p.index == index {
			return p.name
		}
	}
	return ""
}
