package erofs

import (
	"encoding/binary"
	"fmt"
	"strings"
)

// Image reads a bootstrap of the form that this package writes. It checks every
// offset, and refuses everything that Encode never writes. It is for one goroutine.
type Image struct {
	BlobBlocks uint32 // blocks of the blob
	Inodes     uint64 // as the superblock says

	data    []byte
	rootNid uint64
	inodes  map[uint64]*FileInfo
	shared  map[uint32]Xattr
	worked  int64
}

func corrupt(format string, args ...any) error {
	return fmt.Errorf("%w EROFS bootstrap: %s", ErrInvalid, fmt.Sprintf(format, args...))
}

// Open checks the superblock. data must not change while the Image is in use.
func Open(data []byte) (*Image, error) {
	if len(data) < BlockSize || len(data)%BlockSize != 0 {
		return nil, corrupt("%d bytes", len(data))
	}
	s, err := decodeSuper(data)
	if err != nil {
		return nil, err
	}
	return &Image{
		BlobBlocks: s.blobBlocks, Inodes: s.inodes, data: data, rootNid: s.rootNid,
		inodes: map[uint64]*FileInfo{}, shared: map[uint32]Xattr{},
	}, nil
}

// work counts the bytes that are read. In a good bootstrap every byte belongs to one
// object; in a hostile one a few bytes may belong to very many.
func (m *Image) work(n int64) error {
	if m.worked += n; m.worked > workBase+workShare*int64(len(m.data)) {
		return corrupt("objects that overlap")
	}
	return nil
}

// dirEntry is one name in a directory.
type dirEntry struct {
	name string
	nid  uint64
	typ  uint8
}

// readDir reads a directory, which must be in the order of names: fs/erofs/namei.c
// searches by it.
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
		first := int(binary.LittleEndian.Uint16(b[direntNameOff:]))
		if first < direntSize || first%direntSize != 0 || first > len(b) {
			return nil, corrupt("directory %d: name offset %d", f.Nid, first)
		}
		count := first / direntSize
		for i := range count {
			e := b[i*direntSize:]
			from, to := int(binary.LittleEndian.Uint16(e[direntNameOff:])), len(b)
			if i+1 < count {
				to = int(binary.LittleEndian.Uint16(e[direntSize+direntNameOff:]))
			}
			if from < first || from > to || to > len(b) || e[direntReserved] != 0 {
				return nil, corrupt("directory %d: name at [%d,%d)", f.Nid, from, to)
			}
			name := string(b[from:to])
			if i+1 == count {
				var rest string
				name, rest, _ = strings.Cut(name, "\x00")
				if strings.Trim(rest, "\x00") != "" {
					return nil, corrupt("directory %d: bytes after the last name", f.Nid)
				}
			}
			if name == "" || len(name) > maxName || strings.ContainsAny(name, "/\x00") ||
				len(list) > 0 && name <= list[len(list)-1].name {
				return nil, corrupt("directory %d: name %.40q", f.Nid, name)
			}
			list = append(list, dirEntry{name, binary.LittleEndian.Uint64(e[direntNid:]), e[direntFileType]})
		}
	}
	return list, nil
}
