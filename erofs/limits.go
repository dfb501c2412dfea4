package erofs

import (
	"errors"
	"fmt"
)

// ErrInvalid is matched by errors about invalid input.
var ErrInvalid = errors.New("invalid")

// ErrUnsupported is matched by errors about layers that containerd might unpack, and
// that this package does not convert. The caller should leave them to containerd.
var ErrUnsupported = errors.New("cannot be indexed, leave the layer to containerd")

// Limits bound what a tar can make this package allocate.
type Limits struct {
	Inodes    int   // inodes and names, each
	XattrSize int   // bytes of extended attributes an inode may have
	BlobSize  int64 // bytes of blob, and of one file; at most 8 TiB
}

// DefaultLimits allow every image that was tried, with room to spare.
var DefaultLimits = Limits{
	Inodes:    8 << 20,
	XattrSize: 60 << 10, // i_xattr_icount counts 4-byte units in 16 bits
	BlobSize:  maxBlob,
}

const (
	maxName  = 255      // NAME_MAX
	maxPath  = 4095     // PATH_MAX without the NUL
	maxLinks = 255      // as containerd's continuity/fs.RootPath
	maxXattr = 64 << 10 // XATTR_SIZE_MAX

	// maxBlob is half of what blob addresses can address: 32 bits of blocks, of which
	// one number means a hole (struct erofs_inode_chunk_index).
	maxBlob = 8 << 40

	// maxChunks keeps the chunk indexes of one sparse file, of 8 bytes, below
	// 512 KiB.
	maxChunks = 1 << 16
)

// The memory and time that a tar may cost grow with the bytes of it that were read, so
// that a small tar cannot cost much, whatever its headers say. Ordinary layers use a
// small part of what is allowed.
const (
	impliedBase, impliedShare = 4096, 64      // a directory for 64 bytes: 8 for the smallest entry
	lookupBase, lookupShare   = 8 << 20, 8    // bytes of paths and symlinks followed
	chunkBase, chunkShare     = 256 << 10, 64 // chunk indexes of sparse files
	blobBase, blobShare       = 256 << 20, 16 // bytes of blob; a file of one byte takes 4096 for 512
	lookupStep                = 16            // bytes that are counted for following one name
	namesBase, namesShare     = 8 << 20, 16   // bytes of all paths of a bootstrap, per byte of its size
	workBase, workShare       = 64 << 10, 2   // bytes of a bootstrap read, per byte of its size
)

// account is the cost of a tar so far.
type account struct {
	read    int64 // bytes of the tar
	implied int64
	lookup  int64
	chunks  int64
}

// allow fails when more is used than the bytes read so far allow.
func (a *account) allow(what string, used, allowed int64) error {
	if used > allowed {
		return fmt.Errorf("layer of %d bytes so far with %s %w", a.read, what, ErrUnsupported)
	}
	return nil
}

func (a *account) addImplied() error {
	a.implied++
	return a.allow("too many directories that have no entry", a.implied, impliedBase+a.read/impliedShare)
}

func (a *account) addLookup(name int) error {
	a.lookup += int64(lookupStep + name)
	return a.allow("too long paths or too many symlinks in them", a.lookup, lookupBase+a.read*lookupShare)
}

func (a *account) addChunks(n int64) error {
	a.chunks += n
	return a.allow("too large sparse files", a.chunks, chunkBase+a.read/chunkShare)
}
