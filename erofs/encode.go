package erofs

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"math"
)

// place is where an inode's metadata lies.
type place struct {
	at     int64 // offset of the inode in the bootstrap, a multiple of slotSize
	layout uint8
	xattrs []byte
	tail   []byte // behind the xattrs: inline data or chunk indexes
	data   []byte // whole blocks elsewhere: the rest of a directory, a long symlink
	block  uint32 // where data begins
}

func (n *Inode) nid() uint64 { return uint64(n.place.at) >> slotBits }

// Encode writes the bootstrap: the superblock with the device slot, shared
// extended attributes, inodes with what is inline, then blocks of directories
// that are not. The same tree gives the same bytes.
func (t *Tree) Encode() ([]byte, error) {
	inodes := t.inodes()
	sharedAt := int64(superOffset + superSize + deviceSlotSize)
	shared := t.shareXattrs(inodes, sharedAt)
	end := t.layOut(inodes, shared, alignUp(sharedAt+int64(len(shared.area)), slotSize))
	if end > math.MaxInt32 {
		return nil, fmt.Errorf("%w layer: %d bytes of metadata", ErrInvalid, end)
	}
	out := make([]byte, end)
	copy(out[sharedAt:], shared.area)
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

// layOut gives every inode its place, starting at offset at, and returns the
// end of the bootstrap.
func (t *Tree) layOut(inodes []*Inode, shared *sharedXattrs, at int64) int64 {
	for _, n := range inodes {
		n.place = place{xattrs: shared.body(n)}
		n.chooseLayout()
		at = n.settle(at)
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

// chooseLayout sizes what belongs to the inode. Directory entries hold numbers
// that are known only once all places are: here they are zeros.
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
		// inode in one (fs/erofs/inode.c, erofs_fill_symlink).
		whole := len(content) / BlockSize * BlockSize
		if n.isDir() && head+len(content)-whole <= BlockSize/2 || !n.isDir() && head+len(content) <= BlockSize {
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
	b = binary.LittleEndian.AppendUint16(b, 0)
	b = binary.LittleEndian.AppendUint16(b, device)
	return binary.LittleEndian.AppendUint32(b, addr)
}

// settle finds the first place from at on where the inode fits and returns
// where the next may begin.
func (n *Inode) settle(at int64) int64 {
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

// encode writes struct erofs_inode_extended and what follows it.
func (n *Inode) encode(out []byte) {
	p := &n.place
	b := out[p.at:]
	le := binary.LittleEndian
	le.PutUint16(b[0:], 1|uint16(p.layout)<<1)
	if len(p.xattrs) > 0 {
		le.PutUint16(b[2:], uint16((len(p.xattrs)-xattrHeaderSize)/4+1))
	}
	le.PutUint16(b[4:], n.Mode)
	le.PutUint64(b[8:], uint64(n.size()))
	le.PutUint32(b[16:], n.union())
	le.PutUint32(b[20:], n.number)
	le.PutUint32(b[24:], n.UID)
	le.PutUint32(b[28:], n.GID)
	le.PutUint64(b[32:], uint64(n.Mtime.Sec))
	le.PutUint32(b[40:], n.Mtime.Nsec)
	le.PutUint32(b[44:], uint32(n.nlink))
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
	b := out[superOffset:]
	le := binary.LittleEndian
	le.PutUint32(b[0:], superMagic)
	le.PutUint32(b[8:], compatSuperChecksum|compatMtime)
	b[12] = blockBits
	le.PutUint16(b[14:], uint16(t.root.nid()))
	le.PutUint64(b[16:], uint64(inodes))
	le.PutUint32(b[36:], uint32(len(out)/BlockSize))
	le.PutUint32(b[44:], 0) // xattr_blkaddr; shared ids count from here
	le.PutUint32(b[80:], incompatChunkedFile|incompatDeviceTable)
	le.PutUint16(b[86:], 1) // extra_devices
	le.PutUint16(b[88:], (superOffset+superSize)/deviceSlotSize)

	// struct erofs_deviceslot: the tag stays empty, the mount option names it.
	slot := out[superOffset+superSize:]
	le.PutUint32(slot[64:], uint32(t.BlobSize/BlockSize))

	le.PutUint32(b[4:], superChecksum(out))
}

// superChecksum is crc32c without the final inversion over the first block
// from the superblock on, its own field zero (fs/erofs/super.c,
// erofs_superblock_csum_verify).
func superChecksum(out []byte) uint32 {
	block := make([]byte, BlockSize-superOffset)
	copy(block, out[superOffset:])
	clear(block[4:8])
	return ^crc32.Checksum(block, crc32.MakeTable(crc32.Castagnoli))
}
