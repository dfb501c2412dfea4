package erofs

import (
	"encoding/binary"
	"fmt"
	"strings"
)

// Image reads a bootstrap as this package writes them. It trusts nothing:
// every offset is checked, and what Encode never writes is refused.
type Image struct {
	data       []byte
	rootNid    uint64
	BlobBlocks uint32 // blocks of the blob
	Inodes     uint64 // as the superblock says
}

// FileInfo is an inode as the bootstrap has it.
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
	Chunks []uint32
	// ChunkSize is what each of Chunks covers, in bytes.
	ChunkSize int64

	layout uint8
	block  uint32
	tail   int64 // offset of inline data
}

func corrupt(format string, args ...any) error {
	return fmt.Errorf("%w EROFS bootstrap: %s", ErrInvalid, fmt.Sprintf(format, args...))
}

// Open checks the superblock. data must not change while the Image is in use.
func Open(data []byte) (*Image, error) {
	if len(data) < BlockSize || len(data)%BlockSize != 0 {
		return nil, corrupt("%d bytes", len(data))
	}
	b := data[superOffset:]
	le := binary.LittleEndian
	switch {
	case le.Uint32(b[0:]) != superMagic:
		return nil, corrupt("magic %#x", le.Uint32(b[0:]))
	case le.Uint32(b[8:]) != compatSuperChecksum|compatMtime,
		le.Uint32(b[80:]) != incompatChunkedFile|incompatDeviceTable:
		return nil, corrupt("features %#x, %#x", le.Uint32(b[8:]), le.Uint32(b[80:]))
	case le.Uint32(b[4:]) != superChecksum(data):
		return nil, corrupt("superblock checksum")
	case b[12] != blockBits || b[13] != 0 || b[90] != 0:
		return nil, corrupt("block size")
	case le.Uint16(b[86:]) != 1 || le.Uint16(b[88:]) != (superOffset+superSize)/deviceSlotSize:
		return nil, corrupt("%d devices", le.Uint16(b[86:]))
	case int64(le.Uint32(b[36:]))*BlockSize != int64(len(data)):
		return nil, corrupt("%d blocks in %d bytes", le.Uint32(b[36:]), len(data))
	case le.Uint32(b[40:]) != 0 || le.Uint32(b[44:]) != 0:
		return nil, corrupt("metadata area")
	}
	return &Image{
		data:       data,
		rootNid:    uint64(le.Uint16(b[14:])),
		Inodes:     le.Uint64(b[16:]),
		BlobBlocks: le.Uint32(data[superOffset+superSize+64:]),
	}, nil
}

// inode decodes and checks one inode.
func (m *Image) inode(nid uint64) (*FileInfo, error) {
	if nid > uint64(len(m.data))>>slotBits {
		return nil, corrupt("inode %d beyond the end", nid)
	}
	at := int64(nid) << slotBits
	if at < superOffset+superSize+deviceSlotSize || at+extendedInodeSize > int64(len(m.data)) {
		return nil, corrupt("inode %d at %d", nid, at)
	}
	b := m.data[at:]
	le := binary.LittleEndian
	format := le.Uint16(b)
	f := &FileInfo{
		Nid: nid, layout: uint8(format >> 1), Mode: le.Uint16(b[4:]), Size: int64(le.Uint64(b[8:])),
		UID: le.Uint32(b[24:]), GID: le.Uint32(b[28:]), Nlink: le.Uint32(b[44:]),
		Mtime: Time{int64(le.Uint64(b[32:])), le.Uint32(b[40:])},
		block: le.Uint32(b[16:]),
	}
	if format&1 == 0 || f.Size < 0 {
		return nil, corrupt("inode %d: format %#x, size %d", nid, format, f.Size)
	}
	f.tail = at + extendedInodeSize
	if n := int64(le.Uint16(b[2:])); n > 0 {
		f.tail += xattrHeaderSize + (n-1)*4
	}
	if f.tail > int64(len(m.data)) {
		return nil, corrupt("inode %d: extended attributes", nid)
	}
	if err := m.checkXattrs(at+extendedInodeSize, f.tail); err != nil {
		return nil, fmt.Errorf("inode %d: %w", nid, err)
	}
	return f, m.checkContent(f)
}

// checkXattrs walks the attributes of one inode, which lie in [at, end).
func (m *Image) checkXattrs(at, end int64) error {
	if at == end {
		return nil
	}
	shared := int64(m.data[at+4])
	at += xattrHeaderSize
	if at+shared*4 > end {
		return corrupt("%d shared attributes", shared)
	}
	for range shared {
		id := int64(binary.LittleEndian.Uint32(m.data[at:])) * 4
		at += 4
		if _, err := m.xattrEnd(id, int64(len(m.data))); err != nil {
			return err
		}
	}
	for at < end {
		var err error
		if at, err = m.xattrEnd(at, end); err != nil {
			return err
		}
	}
	return nil
}

func (m *Image) xattrEnd(at, limit int64) (int64, error) {
	if at+xattrEntrySize > limit {
		return 0, corrupt("attribute at %d", at)
	}
	e := m.data[at:]
	next := alignUp(at+xattrEntrySize+int64(e[0])+int64(binary.LittleEndian.Uint16(e[2:])), 4)
	if next > limit {
		return 0, corrupt("attribute at %d", at)
	}
	return next, nil
}

func (m *Image) checkContent(f *FileInfo) error {
	typ := f.Mode & ModeType
	switch {
	case typ == ModeRegular && f.Size == 0 && f.layout == layoutPlain:
		return nil
	case typ == ModeRegular && f.layout == layoutChunk:
		return m.readChunks(f)
	case typ == ModeDir || typ == ModeSymlink:
		if typ == ModeSymlink && f.Size > maxPath || f.layout != layoutPlain && f.layout != layoutInline {
			return corrupt("inode %d: layout %d, size %d", f.Nid, f.layout, f.Size)
		}
		parts, err := m.content(f)
		if typ == ModeSymlink {
			for _, p := range parts {
				f.Target += string(p)
			}
		}
		return err
	case typ == ModeChar || typ == ModeBlock || typ == ModeFifo:
		f.Rdev = f.block
		if f.layout != layoutPlain || f.Size != 0 {
			return corrupt("inode %d: device with data", f.Nid)
		}
		return nil
	}
	return corrupt("inode %d: mode %#o with layout %d", f.Nid, f.Mode, f.layout)
}

func (m *Image) readChunks(f *FileInfo) error {
	if f.block&^chunkBitsMask != chunkIndexes {
		return corrupt("inode %d: chunk format %#x", f.Nid, f.block)
	}
	f.ChunkSize = BlockSize << (f.block & chunkBitsMask)
	count := f.Size/f.ChunkSize + min(1, f.Size%f.ChunkSize)
	at := alignUp(f.tail, chunkIndexSize)
	if count > (int64(len(m.data))-at)/chunkIndexSize {
		return corrupt("inode %d: %d chunks", f.Nid, count)
	}
	f.Chunks = make([]uint32, count)
	for i := range f.Chunks {
		e := m.data[at+int64(i)*chunkIndexSize:]
		device, addr := binary.LittleEndian.Uint16(e[2:]), binary.LittleEndian.Uint32(e[4:])
		size := min(f.ChunkSize, f.Size-int64(i)*f.ChunkSize)
		blocks := (size + BlockSize - 1) / BlockSize
		hole := addr == nullBlock
		if binary.LittleEndian.Uint16(e) != 0 || hole != (device == 0) || device > blobDevice ||
			!hole && int64(addr)+blocks > int64(m.BlobBlocks) {
			return corrupt("inode %d: chunk %d at block %d of device %d", f.Nid, i, addr, device)
		}
		f.Chunks[i] = addr
	}
	return nil
}

// content is the data of a directory or symlink: whole blocks, and the inline
// tail. The two are not neighbours, so it returns parts.
func (m *Image) content(f *FileInfo) (parts [][]byte, err error) {
	whole := f.Size
	if f.layout == layoutInline {
		whole = f.Size / BlockSize * BlockSize
		if f.Mode&ModeType == ModeSymlink {
			whole = 0
		}
		n := f.Size - whole
		if f.tail+n > int64(len(m.data)) || n > 0 && f.tail/BlockSize != (f.tail+n-1)/BlockSize {
			return nil, corrupt("inode %d: inline data", f.Nid)
		}
		defer func() {
			if err == nil && n > 0 {
				parts = append(parts, m.data[f.tail:f.tail+n])
			}
		}()
	}
	if whole == 0 {
		return nil, nil
	}
	if at := int64(f.block) * BlockSize; at == 0 || at > int64(len(m.data)) || whole > int64(len(m.data))-at {
		return nil, corrupt("inode %d: %d bytes at block %d", f.Nid, whole, f.block)
	}
	at := int64(f.block) * BlockSize
	for off := int64(0); off < whole; off += BlockSize {
		parts = append(parts, m.data[at+off:at+min(whole, off+BlockSize)])
	}
	return parts, nil
}

// dirEntry is one name in a directory.
type dirEntry struct {
	name string
	nid  uint64
	typ  uint8
}

func (m *Image) readDir(f *FileInfo) ([]dirEntry, error) {
	parts, err := m.content(f)
	if err != nil {
		return nil, err
	}
	var list []dirEntry
	for _, b := range parts {
		if len(b) < direntSize {
			return nil, corrupt("directory %d: %d bytes", f.Nid, len(b))
		}
		first := int(binary.LittleEndian.Uint16(b[8:]))
		if first < direntSize || first%direntSize != 0 || first > len(b) {
			return nil, corrupt("directory %d: name offset %d", f.Nid, first)
		}
		count := first / direntSize
		for i := range count {
			e := b[i*direntSize:]
			from, to := int(binary.LittleEndian.Uint16(e[8:])), len(b)
			if i+1 < count {
				to = int(binary.LittleEndian.Uint16(e[direntSize+8:]))
			}
			if from < first || from > to || to > len(b) {
				return nil, corrupt("directory %d: name at [%d,%d)", f.Nid, from, to)
			}
			name := string(b[from:to])
			if i+1 == count {
				name, _, _ = strings.Cut(name, "\x00")
			}
			if name == "" || len(name) > maxName || strings.ContainsAny(name, "/\x00") ||
				len(list) > 0 && name <= list[len(list)-1].name {
				return nil, corrupt("directory %d: name %.40q", f.Nid, name)
			}
			list = append(list, dirEntry{name, binary.LittleEndian.Uint64(e), e[10]})
		}
	}
	return list, nil
}

// Walk calls f for every name but "." and ".." with its path from the root
// (no leading slash; the root is ""), parents before children, in the order of
// names. It fails on whatever the kernel should not be given: bad offsets,
// directories with two parents, wrong types and link counts of directories.
func (m *Image) Walk(f func(path string, info *FileInfo) error) error {
	type step struct {
		path        string
		nid, parent uint64
	}
	todo := []step{{"", m.rootNid, m.rootNid}}
	seen := map[uint64]bool{}
	// Many names may share one inode; the work they cause is bounded together.
	budget := 4 * len(m.data)
	for len(todo) > 0 {
		s := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		info, err := m.inode(s.nid)
		if err != nil {
			return err
		}
		if err := f(s.path, info); err != nil {
			return err
		}
		if info.Mode&ModeType != ModeDir {
			continue
		}
		if seen[s.nid] {
			return corrupt("directory %d has two parents", s.nid)
		}
		seen[s.nid] = true
		list, err := m.readDir(info)
		if err != nil {
			return err
		}
		dots := 0
		for i := len(list) - 1; i >= 0; i-- {
			e := list[i]
			child, err := m.inode(e.nid)
			if err != nil {
				return err
			}
			if e.typ != direntType(child.Mode) {
				return corrupt("entry %q of directory %d has type %d", e.name, s.nid, e.typ)
			}
			if e.name == "." && e.nid == s.nid || e.name == ".." && e.nid == s.parent {
				dots++
				continue
			}
			if e.name == "." || e.name == ".." || len(s.path)+len(e.name) > 64<<10 {
				return corrupt("entry %q of directory %d", e.name, s.nid)
			}
			if budget -= 1 + len(child.Chunks); budget < 0 {
				return corrupt("more names than bytes")
			}
			path := e.name
			if s.path != "" {
				path = s.path + "/" + e.name
			}
			todo = append(todo, step{path, e.nid, s.nid})
		}
		if dots != 2 {
			return corrupt("directory %d lacks \".\" or \"..\"", s.nid)
		}
	}
	return nil
}

// Check verifies a whole bootstrap for a blob of the given size in bytes.
func Check(data []byte, blobSize int64) error {
	m, err := Open(data)
	if err != nil {
		return err
	}
	if int64(m.BlobBlocks)*BlockSize != blobSize {
		return corrupt("blob of %d blocks, expected %d bytes", m.BlobBlocks, blobSize)
	}
	return m.Walk(func(string, *FileInfo) error { return nil })
}
