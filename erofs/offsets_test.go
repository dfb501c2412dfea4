package erofs

import (
	"testing"
	"unsafe"
)

// The structs of fs/erofs/erofs_fs.h, Linux 6.12, with the header's types.
type (
	headerSuper struct {
		magic           uint32
		checksum        uint32
		featureCompat   uint32
		blkszbits       uint8
		_               uint8 // sb_extslots
		rootNid         uint16
		inos            uint64
		_               uint64 // build_time
		_               uint32 // build_time_nsec
		blocks          uint32
		_               uint32    // meta_blkaddr
		_               uint32    // xattr_blkaddr
		_               [16]uint8 // uuid
		_               [16]uint8 // volume_name
		featureIncompat uint32
		_               uint16 // u1
		extraDevices    uint16
		devtSlotoff     uint16
		_               uint8     // dirblkbits
		_               uint8     // xattr_prefix_count
		_               uint32    // xattr_prefix_start
		_               uint64    // packed_nid
		_               uint8     // xattr_filter_reserved
		_               [23]uint8 // reserved2
	}
	headerSlot struct {
		_      [64]uint8 // tag
		blocks uint32
		_      uint32    // mapped_blkaddr
		_      [56]uint8 // reserved
	}
	headerInode struct {
		format     uint16
		xattrCount uint16
		mode       uint16
		_          uint16 // reserved
		size       uint64
		u          uint32
		ino        uint32
		uid        uint32
		gid        uint32
		mtime      uint64
		mtimeNsec  uint32
		nlink      uint32
		_          [16]uint8 // reserved2
	}
	headerChunk struct {
		advise   uint16
		deviceID uint16
		blkaddr  uint32
	}
	headerXattrs struct {
		nameFilter  uint32
		sharedCount uint8
		_           [7]uint8 // reserved2
	}
	headerXattr struct {
		nameLen   uint8
		nameIndex uint8
		valueSize uint16
	}
)

// TestOffsets compares the offsets with a C compiler's, which Go's are where every
// field is aligned. struct erofs_dirent is packed to 12 bytes: it has none here.
func TestOffsets(t *testing.T) {
	var (
		s headerSuper
		d headerSlot
		i headerInode
		c headerChunk
		h headerXattrs
		e headerXattr
	)
	for name, pair := range map[string][2]uintptr{
		"magic": {sbMagic, unsafe.Offsetof(s.magic)}, "checksum": {sbChecksum, unsafe.Offsetof(s.checksum)},
		"feature_compat": {sbFeatureCompat, unsafe.Offsetof(s.featureCompat)}, "blkszbits": {sbBlockBits, unsafe.Offsetof(s.blkszbits)},
		"root_nid": {sbRootNid, unsafe.Offsetof(s.rootNid)}, "inos": {sbInodes, unsafe.Offsetof(s.inos)},
		"blocks": {sbBlocks, unsafe.Offsetof(s.blocks)}, "feature_incompat": {sbFeatureIncompat, unsafe.Offsetof(s.featureIncompat)},
		"extra_devices": {sbExtraDevices, unsafe.Offsetof(s.extraDevices)}, "devt_slotoff": {sbDeviceSlot, unsafe.Offsetof(s.devtSlotoff)},
		"superblock": {superSize, unsafe.Sizeof(s)}, "slot's blocks": {slotBlocks, unsafe.Offsetof(d.blocks)}, "slot": {deviceSlotSize, unsafe.Sizeof(d)},

		"i_format": {inodeFormat, unsafe.Offsetof(i.format)}, "i_xattr_icount": {inodeXattrCount, unsafe.Offsetof(i.xattrCount)},
		"i_mode": {inodeMode, unsafe.Offsetof(i.mode)}, "i_size": {inodeFileSize, unsafe.Offsetof(i.size)}, "i_u": {inodeUnion, unsafe.Offsetof(i.u)},
		"i_ino": {inodeNumber, unsafe.Offsetof(i.ino)}, "i_uid": {inodeUID, unsafe.Offsetof(i.uid)}, "i_gid": {inodeGID, unsafe.Offsetof(i.gid)},
		"i_mtime": {inodeMtime, unsafe.Offsetof(i.mtime)}, "i_mtime_nsec": {inodeMtimeNsec, unsafe.Offsetof(i.mtimeNsec)},
		"i_nlink": {inodeNlink, unsafe.Offsetof(i.nlink)}, "inode": {extendedInodeSize, unsafe.Sizeof(i)},

		"advise": {chunkAdvise, unsafe.Offsetof(c.advise)}, "device_id": {chunkDevice, unsafe.Offsetof(c.deviceID)},
		"blkaddr": {chunkBlock, unsafe.Offsetof(c.blkaddr)}, "chunk index": {chunkIndexSize, unsafe.Sizeof(c)},

		"h_name_filter": {xattrNameFilter, unsafe.Offsetof(h.nameFilter)}, "h_shared_count": {xattrSharedCount, unsafe.Offsetof(h.sharedCount)},
		"attribute header": {xattrHeaderSize, unsafe.Sizeof(h)},
		"e_name_len":       {entryNameLen, unsafe.Offsetof(e.nameLen)}, "e_name_index": {entryNameIndex, unsafe.Offsetof(e.nameIndex)},
		"e_value_size": {entryValueSize, unsafe.Offsetof(e.valueSize)}, "attribute": {xattrEntrySize, unsafe.Sizeof(e)},
	} {
		if pair[0] != pair[1] {
			t.Errorf("%s is at %d, not at %d", name, pair[1], pair[0])
		}
	}
}
