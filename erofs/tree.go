package erofs

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// Limits bound what a tar can make this package allocate.
type Limits struct {
	Inodes    int   // inodes and names, each
	XattrSize int   // bytes of extended attributes an inode may have
	BlobSize  int64 // bytes of blob
}

// DefaultLimits allow every image we have seen with room to spare. A blob
// address is 32 bits of blocks (struct erofs_inode_chunk_index).
var DefaultLimits = Limits{
	Inodes:    8 << 20,
	XattrSize: 60 << 10, // i_xattr_icount counts 4-byte units in 16 bits
	BlobSize:  8 << 40,
}

const (
	maxName  = 255  // NAME_MAX
	maxPath  = 4095 // PATH_MAX less its NUL
	maxLinks = 255  // as containerd's continuity/fs.RootPath
)

// ErrInvalid is matched by errors that the input is to blame for.
var ErrInvalid = errors.New("invalid")

// Time is a modification time: seconds and nanoseconds since 1970.
type Time struct {
	Sec  int64
	Nsec uint32
}

// Extent is a run of a file's bytes: where in the file, in the blob, and in the
// tar stream they are.
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
	count int // names added, also those since removed
	opts  Options
}

func newTree(opts Options) *Tree {
	t := &Tree{opts: opts}
	t.root = &Inode{Mode: ModeDir | 0o755, children: map[string]*Inode{}, implied: true}
	return t
}

// Lookup returns the inode at a path of the tree, without following symlinks,
// or nil.
func (t *Tree) Lookup(path string) *Inode {
	n := t.root
	for _, c := range split(path) {
		if n = n.children[c]; n == nil {
			return nil
		}
	}
	return n
}

func split(path string) []string {
	return strings.FieldsFunc(path, func(r rune) bool { return r == '/' })
}

// resolve follows symlinks of the tree in path and returns the components of
// what it names, of which the last ones may not exist. It cannot leave the
// root: ".." stops there and an absolute target starts there.
func (t *Tree) resolve(path string) ([]string, error) {
	todo := split(path)
	done := []string{}
	nodes := []*Inode{t.root} // nodes[i] is what done[:i] names, or nil
	links := 0
	for len(todo) > 0 {
		c := todo[0]
		todo = todo[1:]
		switch c {
		case ".":
			continue
		case "..":
			done = done[:max(0, len(done)-1)]
			nodes = nodes[:len(done)+1]
			continue
		}
		var n *Inode
		if dir := nodes[len(done)]; dir != nil {
			n = dir.children[c]
		}
		if n == nil || n.Mode&ModeType != ModeSymlink {
			done = append(done, c)
			nodes = append(nodes, n)
			continue
		}
		if links++; links > maxLinks {
			return nil, fmt.Errorf("%w path %q: too many symlinks", ErrInvalid, path)
		}
		if strings.HasPrefix(n.Target, "/") {
			done = done[:0]
			nodes = nodes[:1]
		}
		todo = append(split(n.Target), todo...)
		if len(todo) > maxPath {
			return nil, fmt.Errorf("%w path %q: too long", ErrInvalid, path)
		}
	}
	return done, nil
}

// mkdirs returns the directory named by resolved components and makes what is
// missing.
func (t *Tree) mkdirs(components []string) (*Inode, error) {
	n := t.root
	for i, c := range components {
		child := n.children[c]
		if child == nil {
			child = &Inode{Mode: ModeDir | 0o755, children: map[string]*Inode{}, implied: true}
			path := strings.Join(components[:i+1], "/")
			if t.opts.Implied != nil {
				t.opts.Implied(path, child)
			}
			if err := t.add(n, c, child); err != nil {
				return nil, err
			}
		}
		if !child.isDir() {
			return nil, fmt.Errorf("%w path %q: %q is not a directory", ErrInvalid, strings.Join(components, "/"), c)
		}
		n = child
	}
	return n, nil
}

// add puts a name into a directory, replacing what had it.
func (t *Tree) add(dir *Inode, name string, n *Inode) error {
	if len(name) > maxName {
		return fmt.Errorf("%w name %.40q...: %d bytes, at most %d", ErrInvalid, name, len(name), maxName)
	}
	if t.count++; t.count > t.opts.Limits.Inodes {
		return fmt.Errorf("%w layer: more than %d files", ErrInvalid, t.opts.Limits.Inodes)
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
