package erofs

import (
	"encoding/binary"
	"slices"
	"strings"
)

type dirent struct {
	name string
	n    *Inode
}

// dirents are the directory's entries with "." and "..", in the byte order
// that fs/erofs/namei.c searches by.
func (n *Inode) dirents(parent *Inode) []dirent {
	list := make([]dirent, 0, len(n.children)+2)
	list = append(list, dirent{".", n}, dirent{"..", parent})
	for name, c := range n.children {
		list = append(list, dirent{name, c})
	}
	slices.SortFunc(list, func(a, b dirent) int { return strings.Compare(a.name, b.name) })
	return list
}

// directoryBlocks groups the entries that share a block. Each block holds its
// entries' structs first and then their names.
func directoryBlocks(list []dirent) (blocks [][]dirent, sizes []int) {
	start, size := 0, 0
	for i, d := range list {
		need := direntSize + len(d.name)
		if size+need > BlockSize {
			blocks, sizes = append(blocks, list[start:i]), append(sizes, size)
			start, size = i, 0
		}
		size += need
	}
	return append(blocks, list[start:]), append(sizes, size)
}

func (n *Inode) direntsSize() int {
	_, sizes := directoryBlocks(n.dirents(n))
	return (len(sizes)-1)*BlockSize + sizes[len(sizes)-1]
}

// encodeDirectories writes all directories, now that every inode has its place.
func (t *Tree) encodeDirectories(out []byte) {
	t.walk(func(dir, parent *Inode) {
		p := &dir.place
		blocks, _ := directoryBlocks(dir.dirents(parent))
		for i, list := range blocks {
			at := int64(p.block)*BlockSize + int64(i)*BlockSize
			if i*BlockSize >= len(p.data) {
				at = p.at + int64(extendedInodeSize+len(p.xattrs))
			}
			encodeDirents(out[at:], list)
		}
	})
}

// encodeDirents writes one block of struct erofs_dirent and names.
func encodeDirents(b []byte, list []dirent) {
	le := binary.LittleEndian
	name := direntSize * len(list)
	for i, d := range list {
		e := b[i*direntSize:]
		le.PutUint64(e[direntNid:], d.n.nid())
		le.PutUint16(e[direntNameOff:], uint16(name))
		e[direntFileType] = direntType(d.n.Mode)
		name += copy(b[name:], d.name)
	}
}
