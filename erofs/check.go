package erofs

// Check verifies a whole bootstrap for a blob of the given size in bytes, before the
// kernel reads any of it.
//
// What the kernel reads, by its files in fs/erofs (Linux 6.12 and 6.18), and
// where it is checked here:
//
//	super.c     struct erofs_super_block,      decodeSuper: the bytes are those that encode
//	            struct erofs_deviceslot        writes, except checksum, root, inodes, sizes
//	            checksum, blocks               decodeSuper
//	            blocks of the device           Check, against the blob
//	            root_nid                       Walk: a directory
//	            inos                           Walk: the inodes that were found
//	inode.c     struct erofs_inode_extended    decodeInode: the bytes are those that encode
//	            (compact ones are refused)     writes, the numbers in bounds
//	            i_nlink                        Walk: the names that were found
//	            i_format, i_mode, i_size, i_u  readInode, by type of file
//	            fast symlinks                  readInode: length, no NUL
//	data.c      flat and inline layouts        content: bounds, tail within a block
//	            struct erofs_inode_chunk_index readChunks: device, bounds of the blob
//	dir.c,      struct erofs_dirent            readDir: order, names, no bytes after them
//	namei.c     "." and ".."                   enter: present, and right
//	            file_type                      Walk: that of the inode
//	            the tree                       enter: no directory has two parents
//	xattr.c     struct erofs_xattr_ibody_...   readXattrs: count, no name filter
//	            shared ids                     sharedXattr: entry within the bootstrap
//	            struct erofs_xattr_entry       xattr: prefix, name, form of ACLs and
//	                                           capabilities, no power over overlayfs
//
// The cost is bounded by the size: see [Image.work] and namesBase.
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

// Walk calls f for every name but "." and ".." with its path from the root
// (no leading slash; the root is ""), parents before children, in the order of
// names. It fails on anything that the kernel should not read; see [Check].
func (m *Image) Walk(f func(path string, info *FileInfo) error) error {
	w := walk{m: m, f: f, links: map[uint64]uint32{}, room: namesBase + namesShare*int64(len(m.data))}
	m.worked = 0
	clear(m.inodes)
	clear(m.shared)
	root, err := m.inode(m.rootNid)
	if err != nil {
		return err
	}
	if !root.isDir() {
		return corrupt("root of mode %#o", root.Mode)
	}
	if err := f("", root); err != nil {
		return err
	}
	if err := w.enter(root, root, ""); err != nil {
		return err
	}
	for len(w.stack) > 0 {
		top := &w.stack[len(w.stack)-1]
		if len(top.list) == 0 {
			w.stack = w.stack[:len(w.stack)-1]
			continue
		}
		e := top.list[0]
		top.list = top.list[1:]
		if err := w.visit(e, top.dir, top.path); err != nil {
			return err
		}
	}
	return w.finish()
}

// walk is the state of one Walk.
type walk struct {
	m     *Image
	f     func(path string, info *FileInfo) error
	stack []level
	links map[uint64]uint32 // link counts, from the names found
	room  int64             // bytes of paths left
}

// level is a directory that is being walked.
type level struct {
	dir  *FileInfo
	path string
	list []dirEntry // not yet visited
}

func (f *FileInfo) isDir() bool { return f.Mode&ModeType == ModeDir }

// enter reads a directory. Its "." and ".." must lead to itself and its parent, and it
// must not have been entered before: it would have two parents, or be its own ancestor.
func (w *walk) enter(dir, parent *FileInfo, path string) error {
	if w.links[dir.Nid] > 0 {
		return corrupt("directory %d has two parents", dir.Nid)
	}
	w.links[dir.Nid] = 2
	if parent != dir {
		w.links[parent.Nid]++
	}
	list, err := w.m.readDir(dir)
	if err != nil {
		return err
	}
	dots := 0
	kept := list[:0]
	for _, e := range list {
		switch {
		case e.name != "." && e.name != "..":
			kept = append(kept, e)
		case e.typ == direntType(ModeDir) && (e.name == "." && e.nid == dir.Nid || e.name == ".." && e.nid == parent.Nid):
			dots++
		default:
			return corrupt("entry %q of directory %d leads to %d", e.name, dir.Nid, e.nid)
		}
	}
	if dots != 2 {
		return corrupt("directory %d lacks \".\" or \"..\"", dir.Nid)
	}
	w.stack = append(w.stack, level{dir, path, kept})
	return nil
}

func (w *walk) visit(e dirEntry, dir *FileInfo, path string) error {
	if path != "" {
		path += "/"
	}
	path += e.name
	if w.room -= int64(len(path)); len(path) > maxPath+maxName || w.room < 0 {
		return corrupt("a path of %d bytes, or too many of them", len(path))
	}
	info, err := w.m.inode(e.nid)
	if err != nil {
		return err
	}
	if e.typ != direntType(info.Mode) {
		return corrupt("entry %.40q of directory %d has type %d", e.name, dir.Nid, e.typ)
	}
	if err := w.f(path, info); err != nil {
		return err
	}
	if info.isDir() {
		return w.enter(info, dir, path)
	}
	w.links[info.Nid]++
	return nil
}

// finish compares the counts of inodes and names.
func (w *walk) finish() error {
	if uint64(len(w.links)) != w.m.Inodes {
		return corrupt("%d inodes, the superblock says %d", len(w.links), w.m.Inodes)
	}
	for nid, n := range w.links {
		if got := w.m.inodes[nid].Nlink; got != n {
			return corrupt("inode %d with %d names says %d", nid, n, got)
		}
	}
	return nil
}
