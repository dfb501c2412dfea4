package erofs

import (
	"archive/tar"
	"fmt"
	"io"
)

// readContent reads the bytes of a regular entry, also of one that has no file
// in the tree (n is nil): tar.Reader would take bytes that it skips for headers.
func (t *Tree) readContent(n *Inode, h *tar.Header, headers []byte, src *tarSource) error {
	if h.Size > t.maxBlob() {
		return fmt.Errorf("%w file of %d bytes: at most %d", ErrInvalid, h.Size, t.maxBlob())
	}
	runs, sparse, err := sparseRuns(h, headers)
	switch {
	case err != nil:
		return err
	case n != nil:
		return t.readData(n, runs, sparse, src)
	case !sparse:
		runs = []sparseRun{{0, h.Size}}
	}
	for _, r := range runs {
		if err := src.take(r.len).drain(); err != nil {
			return err
		}
	}
	return nil
}

// readData gives a regular file its place in the blob and passes on its bytes.
func (t *Tree) readData(n *Inode, runs []sparseRun, sparse bool, src *tarSource) (err error) {
	if sparse {
		err = t.placeSparse(n, runs, src.off)
	} else {
		err = t.placeWhole(n, src.off)
	}
	if err != nil {
		return err
	}
	for _, e := range n.Data {
		part := src.take(e.Len)
		if t.opts.Data != nil {
			if err := t.opts.Data(e, part); err != nil {
				return err
			}
		}
		if err := part.drain(); err != nil {
			return err
		}
	}
	return nil
}

func (t *Tree) placeWhole(n *Inode, stream int64) error {
	if n.Size == 0 {
		return nil
	}
	at, err := t.allocate(n.Size, stream+n.Size)
	if err != nil {
		return err
	}
	n.Data = []Extent{{File: 0, Blob: at, Stream: stream, Len: n.Size}}
	for n.Size > BlockSize<<n.chunkBits {
		n.chunkBits++
	}
	return nil
}

// placeSparse gives blob space only to the chunks that hold data, so that a
// hostile hole costs nothing.
func (t *Tree) placeSparse(n *Inode, runs []sparseRun, stream int64) error {
	for n.Size>>n.chunkBits > maxChunks*BlockSize {
		n.chunkBits++
	}
	chunk := int64(BlockSize) << n.chunkBits
	if err := t.spent.addChunks((n.Size + chunk - 1) / chunk); err != nil {
		return err
	}
	var at, placed int64 = 0, -1 // the chunk last given space, and where
	for _, run := range runs {
		for off := run.off; off < run.off+run.len; {
			part := min(run.off+run.len, (off/chunk+1)*chunk) - off
			if off/chunk != placed {
				placed = off / chunk
				var err error
				if at, err = t.allocate(min(chunk, n.Size-placed*chunk), stream+part); err != nil {
					return err
				}
			}
			n.Data = append(n.Data, Extent{File: off, Blob: at + off%chunk, Stream: stream, Len: part})
			off += part
			stream += part
		}
	}
	return nil
}

func (t *Tree) maxBlob() int64 { return min(t.opts.Limits.BlobSize, maxBlob) }

// allocate takes n bytes of blob for what the tar holds before offset stream.
func (t *Tree) allocate(n, stream int64) (int64, error) {
	at := t.BlobSize
	if n > t.maxBlob()-at {
		return 0, fmt.Errorf("%w layer: more than %d bytes of files", ErrInvalid, t.maxBlob())
	}
	t.BlobSize += alignUp(n, BlockSize)
	if t.BlobSize > blobBase+stream*blobShare {
		return 0, fmt.Errorf("sparse files of %d bytes with little data %w", t.BlobSize, ErrUnsupported)
	}
	return at, nil
}

// chunks are the block addresses of the file's chunks, nullBlock for holes.
func (n *Inode) chunks() []uint32 {
	chunk := int64(BlockSize) << n.chunkBits
	addr := make([]uint32, (n.Size+chunk-1)/chunk)
	for i := range addr {
		addr[i] = nullBlock
	}
	for _, e := range n.Data {
		addr[e.File/chunk] = uint32((e.Blob - e.File%chunk) / BlockSize)
	}
	return addr
}

// tarSource is the stream under a tar.Reader. It knows its offset, keeps an entry's
// raw headers, since tar.Reader does not return all of their contents, and can be read
// directly for file contents: tar.Reader would produce the zeros of every hole,
// terabytes of them where a header says so.
type tarSource struct {
	r    io.Reader
	off  int64
	owed int64 // bytes that were read directly, which the tar.Reader will skip later

	capturing bool
	headers   []byte
	skipped   [8 << 10]byte // contents that are not used
}

// maxHeaders is more than the special entries that archive/tar itself accepts,
// of 1 MiB each.
const maxHeaders = 8 << 20

func (s *tarSource) Read(p []byte) (int, error) {
	if s.owed > 0 {
		n := min(int64(len(p)), s.owed)
		s.owed -= n
		return int(n), nil
	}
	n, err := s.r.Read(p)
	s.off += int64(n)
	if s.capturing {
		if len(s.headers)+n > maxHeaders {
			return 0, fmt.Errorf("%w headers: more than %d bytes", ErrInvalid, maxHeaders)
		}
		s.headers = append(s.headers, p[:n]...)
	}
	return n, err
}

// startHeaders begins to keep the bytes that are read.
func (s *tarSource) startHeaders() { s.capturing, s.headers = true, s.headers[:0] }

// stopHeaders returns the bytes read since startHeaders, from the first header block
// on. They are valid until the next startHeaders.
func (s *tarSource) stopHeaders() []byte {
	s.capturing = false
	padding := (s.off - int64(len(s.headers))) & (tarBlock - 1)
	if padding != 0 {
		padding = tarBlock - padding
	}
	return s.headers[min(int(padding), len(s.headers)):]
}

// take returns the next n bytes of the stream.
func (s *tarSource) take(n int64) *content {
	s.owed += n
	return &content{src: s, left: n}
}

type content struct {
	src  *tarSource
	left int64
}

func (c *content) Read(p []byte) (int, error) {
	if c.left == 0 {
		return 0, io.EOF
	}
	n, err := c.src.r.Read(p[:min(int64(len(p)), c.left)])
	c.src.off += int64(n)
	c.left -= int64(n)
	if err == io.EOF && c.left > 0 {
		err = io.ErrUnexpectedEOF
	}
	return n, err
}

func (c *content) drain() error {
	for c.left > 0 {
		if _, err := c.Read(c.src.skipped[:]); err != nil {
			return err
		}
	}
	return nil
}
