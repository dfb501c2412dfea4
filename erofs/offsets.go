package erofs

// Offsets of the fields that this package writes or reads, by their names in
// fs/erofs/erofs_fs.h, Linux 6.12. All numbers are little-endian.

// struct erofs_super_block
const (
	sbMagic           = 0  // magic
	sbChecksum        = 4  // checksum
	sbFeatureCompat   = 8  // feature_compat
	sbBlockBits       = 12 // blkszbits
	sbRootNid         = 14 // root_nid
	sbInodes          = 16 // inos
	sbBlocks          = 36 // blocks
	sbFeatureIncompat = 80 // feature_incompat
	sbExtraDevices    = 86 // extra_devices
	sbDeviceSlot      = 88 // devt_slotoff
	superSize         = 128
)

// struct erofs_deviceslot
const (
	slotBlocks     = 64 // blocks
	deviceSlotSize = 128
)

// struct erofs_inode_extended
const (
	inodeFormat       = 0  // i_format
	inodeXattrCount   = 2  // i_xattr_icount
	inodeMode         = 4  // i_mode
	inodeFileSize     = 8  // i_size
	inodeUnion        = 16 // i_u
	inodeNumber       = 20 // i_ino
	inodeUID          = 24 // i_uid
	inodeGID          = 28 // i_gid
	inodeMtime        = 32 // i_mtime
	inodeMtimeNsec    = 40 // i_mtime_nsec
	inodeNlink        = 44 // i_nlink
	extendedInodeSize = 64
)

// Bits of i_format.
const (
	formatExtended    = 1 // EROFS_I_VERSION_BIT, EROFS_INODE_LAYOUT_EXTENDED
	formatLayoutShift = 1 // EROFS_I_DATALAYOUT_BIT
	formatLayoutMask  = 7 // EROFS_I_DATALAYOUT_MASK
)

// struct erofs_inode_chunk_index
const (
	chunkAdvise    = 0 // advise; startblk_hi in later kernels
	chunkDevice    = 2 // device_id
	chunkBlock     = 4 // blkaddr
	chunkIndexSize = 8
)

// struct erofs_dirent
const (
	direntNid      = 0  // nid
	direntNameOff  = 8  // nameoff
	direntFileType = 10 // file_type
	direntReserved = 11 // reserved
	direntSize     = 12
)

// struct erofs_xattr_ibody_header
const (
	xattrNameFilter  = 0 // h_name_filter
	xattrSharedCount = 4 // h_shared_count
	xattrHeaderSize  = 12
)

// struct erofs_xattr_entry. Entries, and the ids of shared ones, count in units of
// four bytes.
const (
	entryNameLen   = 0 // e_name_len
	entryNameIndex = 1 // e_name_index
	entryValueSize = 2 // e_value_size
	xattrEntrySize = 4

	xattrUnit = 4 // sizeof(__u32) in erofs_fs.h
)
