package erofs

import (
	"encoding/binary"
	"fmt"
	"math"
)

// place is where an inode's metadata lies.
type place struct {
	at     int64 // offset of the inode in the bootstrap, a multiple of slotSize
	layout uint8
	xattrs []byte
	tail   []byte // after the xattrs: inline data or chunk indexes
	data   []byte // whole blocks elsewhere: the rest of a directory, a long symlink
	block  uint32 // where data begins
}

func (n *Inode) nid() uint64 { return uint64(n.place.at) >> slotBits }

// Encode writes the bootstrap: the superblock with the device slot, the root
// inode, shared extended attributes, the other inodes with their inline data, then
// the blocks of directories that are not inline. The same tree gives the same bytes.
func (t *Tree) Encode() ([]byte, error) {
	inodes := t.inodes()
	shared := shareXattrs(inodes)
	end := t.layOut(inodes, shared)
	if end > math.MaxInt32 {
		return nil, fmt.Errorf("%w layer: %d bytes of metadata", ErrInvalid, end)
	}
	out := make([]byte, end)
	copy(out[shared.at:], shared.area)
	for _, n := range inodes {
		n.encode(out)
	}
	t.encodeDirectories(out)
	t.encodeSuper(out, len(inodes))
	return out, nil
}

// inodes lists every inode once: each directory followed by its entries, so
// that a walk reads forward.
func (t *Tree) inodes() []*Inode {
	list := []*Inode{t.root}
	t.root.number = 1
	numbered := map[*Inode]bool{t.root: true}
	t.walk(func(dir, _ *Inode) {
		for _, name := range dir.names() {
			if n := dir.children[name]; !numbered[n] {
				numbered[n] = true
				list = append(list, n)
				n.number = uint32(len(list))
			}
		}
	})
	return list
}

// layOut gives every inode its place and returns the end of the bootstrap. The
// root comes first: the superblock has 16 bits for its number, 2 MiB.
func (t *Tree) layOut(inodes []*Inode, shared *sharedXattrs) int64 {
	at := int64(superOffset + superSize + deviceSlotSize)
	for i, n := range inodes {
		n.place = place{xattrs: shared.body(n)}
		n.chooseLayout()
		at = n.put(at)
		if i == 0 {
			shared.at = at
			n.place.xattrs = shared.body(n)
			at = alignUp(at+int64(len(shared.area)), slotSize)
		}
	}
	at = alignUp(at, BlockSize)
	for _, n := range inodes {
		if len(n.place.data) > 0 {
			n.place.block = uint32(at / BlockSize)
			at += alignUp(int64(len(n.place.data)), BlockSize)
		}
	}
	return at
}

// chooseLayout chooses the inode's layout and sizes its data. Directory entries hold
// inode numbers, which are known only when all inodes have their places: here they are
// zeros.
func (n *Inode) chooseLayout() {
	p := &n.place
	head := extendedInodeSize + len(p.xattrs)
	switch n.Mode & ModeType {
	case ModeRegular:
		if n.Size == 0 {
			p.layout, p.block = layoutPlain, nullBlock
			return
		}
		p.layout = layoutChunk
		p.tail = make([]byte, alignUp(head, chunkIndexSize)-head, head)
		for _, addr := range n.chunks() {
			p.tail = appendChunkIndex(p.tail, addr)
		}
	case ModeDir, ModeSymlink:
		content := []byte(n.Target)
		if n.isDir() {
			content = make([]byte, n.direntsSize())
		}
		// Inline data must not cross a block, so it has to fit beside the
		// inode in one (fs/erofs/inode.c, erofs_fill_symlink). Where the last
		// block is full there is no tail, and no inline layout: the kernel would
		// take the last block for the tail (fs/erofs/data.c, erofs_map_blocks_flatmode).
		whole := len(content) / BlockSize * BlockSize
		if n.isDir() && len(content) > whole && head+len(content)-whole <= BlockSize/2 || !n.isDir() && head+len(content) <= BlockSize {
			if !n.isDir() {
				whole = 0
			}
			p.layout, p.data, p.tail = layoutInline, content[:whole], content[whole:]
		} else {
			p.layout, p.data = layoutPlain, content
		}
	}
}

func appendChunkIndex(b []byte, addr uint32) []byte {
	device := uint16(blobDevice)
	if addr == nullBlock {
		device = 0
	}
	var e [chunkIndexSize]byte
	binary.LittleEndian.PutUint16(e[chunkDevice:], device)
	binary.LittleEndian.PutUint32(e[chunkBlock:], addr)
	return append(b, e[:]...)
}

// put gives the inode the first place from at on where it fits, and returns where the
// next may begin.
func (n *Inode) put(at int64) int64 {
	p := &n.place
	need := int64(extendedInodeSize)
	if p.layout == layoutInline {
		need += int64(len(p.xattrs) + len(p.tail))
	}
	if at/BlockSize != (at+min(need, BlockSize)-1)/BlockSize {
		at = alignUp(at, BlockSize)
	}
	if tail := at + int64(extendedInodeSize+len(p.xattrs)); p.layout == layoutInline && len(p.tail) > 0 {
		// Attributes larger than a block: move so that the tail itself fits.
		if over := tail%BlockSize + int64(len(p.tail)) - BlockSize; over > 0 {
			at = alignUp(at+BlockSize-tail%BlockSize, slotSize)
		}
	}
	p.at = at
	return alignUp(at+int64(extendedInodeSize+len(p.xattrs)+len(p.tail)), slotSize)
}

// encode writes the inode and what follows it.
func (n *Inode) encode(out []byte) {
	p := &n.place
	b := out[p.at:]
	rawInode{
		layout: p.layout, xattrs: len(p.xattrs), mode: n.Mode, size: n.size(), union: n.union(), number: n.number,
		uid: n.UID, gid: n.GID, mtime: n.Mtime, nlink: uint32(n.nlink),
	}.encode(b)
	k := extendedInodeSize
	k += copy(b[k:], p.xattrs)
	copy(b[k:], p.tail)
	if len(p.data) > 0 {
		copy(out[int64(p.block)*BlockSize:], p.data)
	}
}

func (n *Inode) size() int64 {
	if n.isDir() || n.Mode&ModeType == ModeSymlink {
		return int64(len(n.place.data) + len(n.place.tail))
	}
	return n.Size
}

// union is i_u: a device number, the chunk format, or the first data block.
func (n *Inode) union() uint32 {
	switch n.Mode & ModeType {
	case ModeChar, ModeBlock:
		return encodeDevice(n.Major, n.Minor)
	}
	if n.place.layout == layoutChunk {
		return chunkIndexes | uint32(n.chunkBits)
	}
	return n.place.block
}

func (t *Tree) encodeSuper(out []byte, inodes int) {
	superblock{
		rootNid: t.root.nid(), inodes: uint64(inodes),
		blocks: uint32(len(out) / BlockSize), blobBlocks: uint32(t.BlobSize / BlockSize),
	}.encode(out[superOffset:])
	binary.LittleEndian.PutUint32(out[superOffset+sbChecksum:], superChecksum(out))
}
