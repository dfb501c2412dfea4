package erofs

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
)

// superblock holds the fields of the superblock and the device slot that differ from
// one bootstrap to another.
type superblock struct {
	rootNid    uint64 // below 1<<16
	inodes     uint64
	blocks     uint32 // of the bootstrap
	blobBlocks uint32
}

// encode writes struct erofs_super_block and struct erofs_deviceslot except the
// checksum. The kernel takes the fields that stay zero as follows, or does not read
// them (fs/erofs/super.c and erofs_fs.h, Linux 6.18):
//
//	sb_extslots, dirblkbits             none, and blocks as elsewhere
//	build_time, build_time_nsec         for compact inodes, which are refused
//	meta_blkaddr, xattr_blkaddr         nids and shared ids count from offset 0
//	uuid, volume_name                   shown to users
//	lz4_max_distance (compr_algs)       no compression
//	xattr_prefix_count, _prefix_start   no long name prefixes
//	packed_nid, metabox_nid             no such inodes
//	xattr_filter_reserved, ishare_...   for features that are off
//	rootnid_8b, *_hi                    for 48-bit layouts, which are off
//	slot: tag                           the mount option names the device
//	slot: mapped_blkaddr (uniaddr)      primary addresses never lead to the device
func (s superblock) encode(b []byte) {
	le := binary.LittleEndian
	le.PutUint32(b[sbMagic:], superMagic)
	le.PutUint32(b[sbFeatureCompat:], compatSuperChecksum|compatMtime)
	b[sbBlockBits] = blockBits
	le.PutUint16(b[sbRootNid:], uint16(s.rootNid))
	le.PutUint64(b[sbInodes:], s.inodes)
	le.PutUint32(b[sbBlocks:], s.blocks)
	le.PutUint32(b[sbFeatureIncompat:], incompatChunkedFile|incompatDeviceTable)
	le.PutUint16(b[sbExtraDevices:], 1)
	le.PutUint16(b[sbDeviceSlot:], (superOffset+superSize)/deviceSlotSize)
	le.PutUint32(b[superSize+slotBlocks:], s.blobBlocks)
}

// decodeSuper reads a superblock with its device slot. It refuses what encode would
// not write, so that every field has been checked.
func decodeSuper(data []byte) (superblock, error) {
	b := data[superOffset : superOffset+superSize+deviceSlotSize]
	le := binary.LittleEndian
	s := superblock{
		rootNid: uint64(le.Uint16(b[sbRootNid:])), inodes: le.Uint64(b[sbInodes:]),
		blocks: le.Uint32(b[sbBlocks:]), blobBlocks: le.Uint32(b[superSize+slotBlocks:]),
	}
	switch {
	case le.Uint32(b[sbMagic:]) != superMagic:
		return s, corrupt("magic %#x", le.Uint32(b[sbMagic:]))
	case le.Uint32(b[sbFeatureCompat:]) != compatSuperChecksum|compatMtime,
		le.Uint32(b[sbFeatureIncompat:]) != incompatChunkedFile|incompatDeviceTable:
		return s, corrupt("features %#x, %#x", le.Uint32(b[sbFeatureCompat:]), le.Uint32(b[sbFeatureIncompat:]))
	case le.Uint32(b[sbChecksum:]) != superChecksum(data):
		return s, corrupt("superblock checksum")
	case int64(s.blocks)*BlockSize != int64(len(data)):
		return s, corrupt("%d blocks in %d bytes", s.blocks, len(data))
	case int64(s.blobBlocks)*BlockSize > maxBlob:
		return s, corrupt("blob of %d blocks", s.blobBlocks)
	}
	want := make([]byte, len(b))
	s.encode(want)
	copy(want[sbChecksum:sbChecksum+4], b[sbChecksum:])
	for i := range b {
		if b[i] != want[i] {
			return s, corrupt("superblock: byte %d is %#x, only %#x is known", i, b[i], want[i])
		}
	}
	if !bytes.Equal(data[:superOffset], make([]byte, superOffset)) {
		return s, corrupt("bytes before the superblock")
	}
	return s, nil
}

// superChecksum is crc32c without the final inversion over the first block
// from the superblock on, its own field zero (fs/erofs/super.c,
// erofs_superblock_csum_verify).
func superChecksum(out []byte) uint32 {
	block := make([]byte, BlockSize-superOffset)
	copy(block, out[superOffset:])
	clear(block[sbChecksum : sbChecksum+4])
	return ^crc32.Checksum(block, crc32.MakeTable(crc32.Castagnoli))
}
