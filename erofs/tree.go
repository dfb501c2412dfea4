package erofs

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// Time is a modification time: seconds and nanoseconds since 1970.
type Time struct {
	Sec  int64
	Nsec uint32
}

// Extent is a run of a file's bytes: their offsets in the file, in the blob, and in
// the tar stream.
type Extent struct {
	File, Blob, Stream, Len int64
}

// Inode is a file of any type. Several names may lead to one.
type Inode struct {
	Mode         uint16
	UID, GID     uint32
	Mtime        Time
	Major, Minor uint32
	Target       string // of a symlink
	Size         int64  // of a regular file
	Data         []Extent
	Xattrs       map[string]string

	children map[string]*Inode // of a directory
	implied  bool              // a directory that the tar has no entry for

	xattrSize int // upper bound of the bytes that Xattrs take
	nlink     int
	number    uint32
	chunkBits uint8 // blocks of a chunk, as a power of two
	place     place
}

func (n *Inode) isDir() bool { return n.Mode&ModeType == ModeDir }

// names are the directory's entries in the order of the format.
func (n *Inode) names() []string { return slices.Sorted(maps.Keys(n.children)) }

// Tree is the file tree of one layer.
type Tree struct {
	// BlobSize is the size of the blob in bytes, a multiple of BlockSize.
	BlobSize int64

	root  *Inode
	count int // names added, including those removed since
	spent account
	dirs  []dirTime

	lookup lookup // its memory is used again
	opts   Options
}

func newTree(opts Options) *Tree {
	t := &Tree{opts: opts}
	t.root = &Inode{Mode: ModeDir | 0o755, implied: true}
	return t
}

// Lookup returns the inode at a path of the tree, without following symlinks,
// or nil.
func (t *Tree) Lookup(path string) *Inode {
	n := t.root
	for _, c := range strings.FieldsFunc(path, func(r rune) bool { return r == '/' }) {
		if n = n.children[c]; n == nil {
			return nil
		}
	}
	return n
}

// add adds a name to a directory.
func (t *Tree) add(dir *Inode, name string, n *Inode) error {
	if len(name) > maxName {
		return fmt.Errorf("%w name %.40q...: %d bytes, at most %d", ErrInvalid, name, len(name), maxName)
	}
	if strings.Contains(name, "\x00") {
		return fmt.Errorf("%w name %.40q", ErrInvalid, name)
	}
	if _, ok := dir.Xattrs[aclDefault]; ok {
		return fmt.Errorf("file that inherits the default ACL of its directory %w", ErrUnsupported)
	}
	if t.count++; t.count > t.opts.Limits.Inodes {
		return fmt.Errorf("%w layer: more than %d files", ErrInvalid, t.opts.Limits.Inodes)
	}
	if dir.children == nil {
		dir.children = map[string]*Inode{}
	}
	dir.children[name] = n
	return nil
}

// walk calls f for every directory with its parent, parents first, in the
// order of names.
func (t *Tree) walk(f func(dir, parent *Inode)) {
	type step struct{ dir, parent *Inode }
	todo := []step{{t.root, t.root}}
	for len(todo) > 0 {
		s := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		f(s.dir, s.parent)
		names := s.dir.names()
		for _, name := range slices.Backward(names) {
			if c := s.dir.children[name]; c.isDir() {
				todo = append(todo, step{c, s.dir})
			}
		}
	}
}
