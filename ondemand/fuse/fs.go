package fuse

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"sync"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/lacuna-snapshotter/lacuna/ondemand"
)

const (
	rootID = 1 // FUSE_ROOT_ID

	// forever, in seconds, is how long the kernel may keep names and attributes:
	// blobs do not change.
	forever = 1 << 30
)

// node is a blob's file.
type node struct {
	name      string
	blob      *ondemand.Blob
	bootstrap string
	file      *os.File // the cache file
}

// blobFS is the file system: one directory.
type blobFS struct {
	fuse.RawFileSystem // all other requests get ENOSYS
	requests           *ondemand.Requests

	mu    sync.RWMutex
	nodes map[uint64]*node
}

func newFS(r *ondemand.Requests) *blobFS {
	return &blobFS{RawFileSystem: fuse.NewDefaultRawFileSystem(), requests: r, nodes: map[uint64]*node{}}
}

// nodeID is a name's number, the same in every daemon.
func nodeID(name string) uint64 {
	sum := sha256.Sum256([]byte(name))
	return binary.LittleEndian.Uint64(sum[:])>>1 | 1<<62 // never the root's, never zero
}

// add makes a blob's file appear.
func (f *blobFS) add(name string, b *ondemand.Blob, bootstrap string) error {
	file, err := os.Open(b.Path())
	if err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	id := nodeID(name)
	if old := f.nodes[id]; old != nil {
		if old.name != name {
			return errors.Join(fmt.Errorf("blobs %s and %s have the same number", old.name, name), file.Close())
		}
		old.file.Close()
	}
	f.nodes[id] = &node{name, b, bootstrap, file}
	return nil
}

// remove makes it disappear.
func (f *blobFS) remove(name string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := f.nodes[nodeID(name)]
	if n == nil {
		return nil
	}
	delete(f.nodes, nodeID(name))
	return n.file.Close()
}

// all lists the nodes.
func (f *blobFS) all() []*node {
	f.mu.RLock()
	defer f.mu.RUnlock()
	return slices.Collect(maps.Values(f.nodes))
}

// get returns a node, nil where there is none.
func (f *blobFS) get(id uint64) *node {
	f.mu.RLock()
	defer f.mu.RUnlock()
	return f.nodes[id]
}

// find is get for a request.
func (f *blobFS) find(id uint64) *node {
	return ondemand.Find(f.requests, func() *node { return f.get(id) })
}

func (n *node) attr(out *fuse.Attr) {
	*out = fuse.Attr{
		Ino: nodeID(n.name), Size: uint64(n.blob.Size()), Blocks: uint64(n.blob.Size()+511) / 512,
		Mode: syscall.S_IFREG | 0o400, Nlink: 1, Blksize: 4096,
	}
}

// Lookup implements fuse.RawFileSystem.
func (f *blobFS) Lookup(_ <-chan struct{}, h *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	n := f.find(nodeID(name))
	if h.NodeId != rootID || n == nil || n.name != name {
		return fuse.ENOENT
	}
	out.NodeId, out.EntryValid, out.AttrValid = nodeID(name), forever, forever
	n.attr(&out.Attr)
	return fuse.OK
}

// GetAttr implements fuse.RawFileSystem.
func (f *blobFS) GetAttr(_ <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	out.AttrValid = forever
	if in.NodeId == rootID {
		out.Attr = fuse.Attr{Ino: rootID, Mode: syscall.S_IFDIR | 0o500, Nlink: 2}
		return fuse.OK
	}
	n := f.find(in.NodeId)
	if n == nil {
		return fuse.Status(syscall.ESTALE)
	}
	n.attr(&out.Attr)
	return fuse.OK
}

// Open implements fuse.RawFileSystem: files need none.
func (f *blobFS) Open(<-chan struct{}, *fuse.OpenIn, *fuse.OpenOut) fuse.Status { return fuse.ENOSYS }

// OpenDir implements fuse.RawFileSystem: nor does the directory, which cannot be
// listed.
func (f *blobFS) OpenDir(<-chan struct{}, *fuse.OpenIn, *fuse.OpenOut) fuse.Status {
	return fuse.ENOSYS
}

// Flush implements fuse.RawFileSystem. The kernel does not ask again after this
// answer: a child that our process forks while it has a blob's file open would
// wait for us when it executes, and our fork for the child.
func (f *blobFS) Flush(<-chan struct{}, *fuse.FlushIn) fuse.Status { return fuse.ENOSYS }

// Read implements fuse.RawFileSystem.
func (f *blobFS) Read(cancel <-chan struct{}, in *fuse.ReadIn, buf []byte) (fuse.ReadResult, fuse.Status) {
	n := f.find(in.NodeId)
	if n == nil {
		f.requests.LogFailure(errors.New("the file is not attached"), "node", in.NodeId)
		return nil, fuse.EIO
	}
	off, size := int64(in.Offset), min(int64(in.Size), int64(len(buf)))
	if off < 0 || off >= n.blob.Size() {
		return fuse.ReadResultData(nil), fuse.OK
	}
	size = min(size, n.blob.Size()-off)
	ctx, stop := context.WithCancel(f.requests.Context())
	defer stop()
	go func() {
		select {
		case <-cancel: // the reader was interrupted
			stop()
		case <-ctx.Done():
		}
	}()
	err := n.blob.Fill(ctx, off, size)
	if err == nil {
		_, err = n.file.ReadAt(buf[:size], off)
	}
	if err != nil { // a short file too
		f.requests.LogFailure(err)
		return nil, fuse.EIO
	}
	return fuse.ReadResultData(buf[:size]), fuse.OK
}
