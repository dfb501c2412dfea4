package ondemand

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// identity tells a blob file from every other file, also from those that had its
// name and inode number before. The inode number alone does not, since it is used
// again at once. The time of birth does on most file systems, but two files may be
// born in one tick of the clock (fs/inode.c, current_time: 1 to 10 ms). The
// generation, a random number that the file system gives each inode, is missing
// on some, and tells a copied file system from nothing. So both are taken, where
// they are there. Where neither is, the identity is one that no other opening of
// the file has: its records are never believed.
type identity struct {
	inode      uint64
	birth      int64  // seconds since 1970
	birthNsec  uint32 // and nanoseconds
	generation uint32
	known      uint32 // hasBirth, hasGeneration
	device     uint64 // st_dev; changes with a mount, so it holds for one boot at most
}

const (
	hasBirth      = 1 << 0
	hasGeneration = 1 << 1
)

// fsIocGetVersion is FS_IOC_GETVERSION of include/uapi/linux/fs.h, _IOR('v', 1,
// long): FS_IOC_GETFLAGS, _IOR('f', 1, long), with another letter.
const fsIocGetVersion = unix.FS_IOC_GETFLAGS + ('v'-'f')<<8

func fileIdentity(f *os.File) (id identity, err error) {
	conn, err := f.SyscallConn()
	if err != nil {
		return id, err
	}
	var st unix.Statx_t
	var generation uint32
	var statErr, genErr error
	err = conn.Control(func(fd uintptr) {
		statErr = unix.Statx(int(fd), "", unix.AT_EMPTY_PATH, unix.STATX_INO|unix.STATX_BTIME, &st)
		// The kernel writes an int there, whatever the number says.
		generation, genErr = unix.IoctlGetUint32(int(fd), fsIocGetVersion)
	})
	if err := errors.Join(err, statErr); err != nil {
		return id, &os.PathError{Op: "statx", Path: f.Name(), Err: err}
	}
	id.inode, id.device = st.Ino, unix.Mkdev(st.Dev_major, st.Dev_minor)
	if st.Mask&unix.STATX_BTIME != 0 {
		id.known |= hasBirth
		id.birth, id.birthNsec = st.Btime.Sec, st.Btime.Nsec
	}
	if genErr == nil {
		id.known |= hasGeneration
		id.generation = generation
	}
	if id.known == 0 {
		var b [8]byte
		_, _ = rand.Read(b[:]) // never fails
		id.birth = int64(binary.LittleEndian.Uint64(b[:]))
	}
	return id, nil
}
