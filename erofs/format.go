package erofs

// From fs/erofs/erofs_fs.h, Linux 6.12. offsets.go has the structs.
const (
	// BlockSize is the only block size that this package writes: the page size of
	// all supported machines, and the one that every kernel with EROFS mounts.
	BlockSize = 4096
	blockBits = 12

	superOffset = 1024
	superMagic  = 0xE0F5E1E2

	compatSuperChecksum = 0x1
	compatMtime         = 0x2

	incompatChunkedFile = 0x4
	incompatDeviceTable = 0x8

	slotBits = 5 // a nid counts slots of 32 bytes
	slotSize = 1 << slotBits

	layoutPlain  = 0 // EROFS_INODE_FLAT_PLAIN
	layoutInline = 2 // EROFS_INODE_FLAT_INLINE
	layoutChunk  = 4 // EROFS_INODE_CHUNK_BASED

	chunkBitsMask = 0x1f       // EROFS_CHUNK_FORMAT_BLKBITS_MASK
	chunkIndexes  = 0x20       // EROFS_CHUNK_FORMAT_INDEXES
	nullBlock     = 0xffffffff // EROFS_NULL_ADDR

	maxSharedXattrs = 255 // h_shared_count is one byte

	xattrUser       = 1 // EROFS_XATTR_INDEX_USER and so on
	xattrACLAccess  = 2
	xattrACLDefault = 3
	xattrTrusted    = 4
	xattrSecurity   = 6
)

// The blob is the one extra device.
const blobDevice = 1

// Type bits of a mode, as in stat(2).
const (
	ModeType    = 0o170000
	ModeFifo    = 0o010000
	ModeChar    = 0o020000
	ModeDir     = 0o040000
	ModeBlock   = 0o060000
	ModeRegular = 0o100000
	ModeSymlink = 0o120000
)

// Directory entry types, as in include/linux/fs_types.h.
func direntType(mode uint16) uint8 {
	switch mode & ModeType {
	case ModeRegular:
		return 1
	case ModeDir:
		return 2
	case ModeChar:
		return 3
	case ModeBlock:
		return 4
	case ModeFifo:
		return 5
	case ModeSymlink:
		return 7
	}
	return 0
}

// encodeDevice is new_encode_dev of include/linux/kdev_t.h.
func encodeDevice(major, minor uint32) uint32 {
	return minor&0xff | major<<8 | minor&^0xff<<12
}

func alignUp[T ~int | ~int64 | ~uint64](n, to T) T { return (n + to - 1) / to * to }
