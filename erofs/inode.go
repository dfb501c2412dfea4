package erofs

import (
	"encoding/binary"
	"math"
	"strings"
)

// rawInode is struct erofs_inode_extended, the only form of inode that this
// package writes.
type rawInode struct {
	layout uint8
	xattrs int // bytes of extended attributes that follow
	mode   uint16
	size   int64
	union  uint32 // i_u: first data block, device number or chunk format
	number uint32 // i_ino: the kernel does not read it
	uid    uint32
	gid    uint32
	mtime  Time
	nlink  uint32
}

// encode writes the inode. i_reserved (i_nb, the upper bits of 48-bit addresses)
// and i_reserved2 stay zero.
func (r rawInode) encode(b []byte) {
	le := binary.LittleEndian
	le.PutUint16(b[inodeFormat:], formatExtended|uint16(r.layout)<<formatLayoutShift)
	if r.xattrs > 0 {
		le.PutUint16(b[inodeXattrCount:], uint16((r.xattrs-xattrHeaderSize)/xattrUnit+1))
	}
	le.PutUint16(b[inodeMode:], r.mode)
	le.PutUint64(b[inodeFileSize:], uint64(r.size))
	le.PutUint32(b[inodeUnion:], r.union)
	le.PutUint32(b[inodeNumber:], r.number)
	le.PutUint32(b[inodeUID:], r.uid)
	le.PutUint32(b[inodeGID:], r.gid)
	le.PutUint64(b[inodeMtime:], uint64(r.mtime.Sec))
	le.PutUint32(b[inodeMtimeNsec:], r.mtime.Nsec)
	le.PutUint32(b[inodeNlink:], r.nlink)
}

// decodeInode is the reverse of encode, and refuses what encode does not write.
func decodeInode(b []byte) (rawInode, bool) {
	le := binary.LittleEndian
	r := rawInode{
		layout: uint8(le.Uint16(b[inodeFormat:]) >> formatLayoutShift & formatLayoutMask),
		mode:   le.Uint16(b[inodeMode:]), size: int64(le.Uint64(b[inodeFileSize:])),
		union: le.Uint32(b[inodeUnion:]), number: le.Uint32(b[inodeNumber:]), uid: le.Uint32(b[inodeUID:]), gid: le.Uint32(b[inodeGID:]),
		mtime: Time{int64(le.Uint64(b[inodeMtime:])), le.Uint32(b[inodeMtimeNsec:])}, nlink: le.Uint32(b[inodeNlink:]),
	}
	if n := int(le.Uint16(b[inodeXattrCount:])); n > 0 {
		r.xattrs = xattrHeaderSize + (n-1)*xattrUnit
	}
	var again [extendedInodeSize]byte
	r.encode(again[:])
	return r, string(again[:]) == string(b[:extendedInodeSize]) && r.bounded()
}

// bounded reports whether a tar can lead to these numbers: owners that are not -1,
// times of 63 bits of nanoseconds since 1970, sizes that a blob can have, and an
// attribute header only before attributes (the kernel answers EOPNOTSUPP to an empty
// one: fs/erofs/xattr.c).
func (r rawInode) bounded() bool {
	return r.uid != math.MaxUint32 && r.gid != math.MaxUint32 &&
		r.mtime.Sec >= 0 && r.mtime.Sec <= math.MaxInt64/1_000_000_000 && r.mtime.Nsec < 1_000_000_000 &&
		r.size >= 0 && r.size <= maxBlob && r.xattrs != xattrHeaderSize && r.nlink > 0
}

// FileInfo is an inode as the bootstrap has it. Callers must not change it: several
// names may share it.
type FileInfo struct {
	Nid    uint64
	Mode   uint16
	UID    uint32
	GID    uint32
	Nlink  uint32
	Size   int64
	Mtime  Time
	Rdev   uint32 // in the kernel's new_encode_dev form
	Target string // of a symlink
	Xattrs []Xattr
	// Chunks are block addresses in the blob; ^uint32(0) means a hole.
	Chunks []uint32
	// ChunkSize is what each of Chunks covers, in bytes.
	ChunkSize int64

	layout uint8
	union  uint32
	tail   int64 // offset of the first byte after the attributes
}

// Xattr is an extended attribute with its full name.
type Xattr struct{ Name, Value string }

// inode decodes and checks one inode, once.
func (m *Image) inode(nid uint64) (*FileInfo, error) {
	if f := m.inodes[nid]; f != nil {
		return f, nil
	}
	if nid > uint64(len(m.data))>>slotBits {
		return nil, corrupt("inode %d beyond the end", nid)
	}
	at := int64(nid) << slotBits
	if at < superOffset+superSize+deviceSlotSize || at+extendedInodeSize > int64(len(m.data)) {
		return nil, corrupt("inode %d at %d", nid, at)
	}
	if err := m.work(extendedInodeSize); err != nil {
		return nil, err
	}
	r, ok := decodeInode(m.data[at:])
	if !ok {
		return nil, corrupt("inode %d: %x", nid, m.data[at:at+extendedInodeSize])
	}
	f := &FileInfo{
		Nid: nid, Mode: r.mode, UID: r.uid, GID: r.gid, Nlink: r.nlink, Size: r.size, Mtime: r.mtime,
		layout: r.layout, union: r.union, tail: at + extendedInodeSize + int64(r.xattrs),
	}
	if f.tail > int64(len(m.data)) {
		return nil, corrupt("inode %d: extended attributes", nid)
	}
	if err := m.readXattrs(f, at+extendedInodeSize); err != nil {
		return nil, err
	}
	if err := m.readInode(f); err != nil {
		return nil, err
	}
	m.inodes[nid] = f
	return f, nil
}

// readInode checks the fields whose meaning depends on the type of file.
func (m *Image) readInode(f *FileInfo) error {
	typ := f.Mode & ModeType
	switch {
	case typ == ModeRegular && f.Size == 0 && f.layout == layoutPlain && f.union == nullBlock:
		return nil
	case typ == ModeRegular && f.Size > 0 && f.layout == layoutChunk:
		return m.readChunks(f)
	case typ == ModeDir:
		return nil // readDir reads its entries, once
	case typ == ModeSymlink && f.Size > 0 && f.Size <= maxPath:
		parts, err := m.content(f)
		if err != nil {
			return err
		}
		f.Target = string(parts[0]) // shorter than a block
		if strings.Contains(f.Target, "\x00") {
			return corrupt("inode %d: symlink to %.40q", f.Nid, f.Target)
		}
		return nil
	case (typ == ModeChar || typ == ModeBlock || typ == ModeFifo && f.union == 0) && f.layout == layoutPlain && f.Size == 0:
		f.Rdev = f.union
		return nil
	}
	return corrupt("inode %d: mode %#o, layout %d, size %d, %#x", f.Nid, f.Mode, f.layout, f.Size, f.union)
}

// readChunks reads the chunk indexes of a regular file: all must lie in the blob.
func (m *Image) readChunks(f *FileInfo) error {
	if f.union&^chunkBitsMask != chunkIndexes {
		return corrupt("inode %d: chunk format %#x", f.Nid, f.union)
	}
	f.ChunkSize = BlockSize << (f.union & chunkBitsMask)
	count := f.Size/f.ChunkSize + min(1, f.Size%f.ChunkSize)
	at := alignUp(f.tail, chunkIndexSize)
	if count > (int64(len(m.data))-at)/chunkIndexSize {
		return corrupt("inode %d: %d chunks", f.Nid, count)
	}
	if err := m.work(count * chunkIndexSize); err != nil {
		return err
	}
	f.Chunks = make([]uint32, count)
	for i := range f.Chunks {
		e := m.data[at+int64(i)*chunkIndexSize:]
		advise, device, addr := binary.LittleEndian.Uint16(e[chunkAdvise:]), binary.LittleEndian.Uint16(e[chunkDevice:]), binary.LittleEndian.Uint32(e[chunkBlock:])
		size := min(f.ChunkSize, f.Size-int64(i)*f.ChunkSize)
		blocks := (size + BlockSize - 1) / BlockSize
		hole := addr == nullBlock
		if advise != 0 || hole && device != 0 || !hole && device != blobDevice ||
			!hole && int64(addr)+blocks > int64(m.BlobBlocks) {
			return corrupt("inode %d: chunk %d at block %d of device %d", f.Nid, i, addr, device)
		}
		f.Chunks[i] = addr
	}
	return nil
}

// content is the data of a directory or symlink: whole blocks, and the inline tail.
// These are not contiguous, so it returns one part for each block.
func (m *Image) content(f *FileInfo) (parts [][]byte, err error) {
	if err := m.work(f.Size); err != nil {
		return nil, err
	}
	whole, end := f.Size, int64(len(m.data))
	if f.layout == layoutInline {
		// The kernel takes the last block for the tail, even when it is full.
		whole = (f.Size - 1) / BlockSize * BlockSize
	} else if f.layout != layoutPlain {
		return nil, corrupt("inode %d: layout %d", f.Nid, f.layout)
	}
	if at := int64(f.union) * BlockSize; whole > 0 {
		if at == 0 || at > end || alignUp(whole, BlockSize) > end-at {
			return nil, corrupt("inode %d: %d bytes at block %d", f.Nid, whole, f.union)
		}
		for off := int64(0); off < whole; off += BlockSize {
			parts = append(parts, m.data[at+off:at+min(whole, off+BlockSize)])
		}
		// When it looks up a name, the kernel reads to the end of the block.
		if !zeros(m.data[at+whole : at+alignUp(whole, BlockSize)]) {
			return nil, corrupt("inode %d: bytes after its end", f.Nid)
		}
	} else if f.union != 0 {
		return nil, corrupt("inode %d: block %d", f.Nid, f.union)
	}
	if n := f.Size - whole; n > 0 {
		if n > end-f.tail || f.tail/BlockSize != (f.tail+n-1)/BlockSize {
			return nil, corrupt("inode %d: inline data", f.Nid)
		}
		parts = append(parts, m.data[f.tail:f.tail+n])
	}
	return parts, nil
}

func zeros(b []byte) bool {
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}
