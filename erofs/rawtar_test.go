package erofs

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"strconv"
)

// rawTar writes tars that archive/tar's writer refuses to write.
type rawTar struct {
	bytes.Buffer
	gnu bool // GNU's magic in place of POSIX's
}

// entry writes one header block and its data, padded. The size is what the
// header says.
func (w *rawTar) entry(flag byte, name string, size int64, data string) {
	var b [tarBlock]byte
	copy(b[0:100], name)
	copy(b[100:], "0000644\x000000000\x000000000\x00")
	copy(b[124:], fmt.Sprintf("%011o\x00", size))
	copy(b[136:], "00000000001\x00        ")
	b[156] = flag
	copy(b[257:], "ustar\x0000")
	if w.gnu {
		copy(b[257:], "ustar  \x00")
	}
	sum := 0
	for _, c := range b {
		sum += int(c)
	}
	copy(b[148:], fmt.Sprintf("%06o\x00 ", sum))
	w.Write(b[:])
	w.WriteString(data)
	w.Write(make([]byte, alignUp(len(data), tarBlock)-len(data)))
}

// pax writes the records, in pairs of key and value, that the next entry has.
func (w *rawTar) pax(records ...string) {
	var s string
	for i := 0; i < len(records); i += 2 {
		s += paxRecord(records[i], records[i+1])
	}
	w.entry(tar.TypeXHeader, "pax", int64(len(s)), s)
}

func paxRecord(key, value string) string {
	n := len(key) + len(value) + 3
	n += len(strconv.Itoa(n))
	if len(strconv.Itoa(n)) > len(strconv.Itoa(n-1)) {
		n++
	}
	return fmt.Sprintf("%d %s=%s\n", n, key, value)
}

// end writes the end of the archive and returns all.
func (w *rawTar) end() []byte {
	w.Write(make([]byte, 2*tarBlock))
	return w.Bytes()
}

// assemble gives a file's bytes as its extents have them.
func assemble(n *Inode, layer []byte) []byte {
	b := make([]byte, n.Size)
	for _, e := range n.Data {
		copy(b[e.File:], layer[e.Stream:e.Stream+e.Len])
	}
	return b
}

// archiveTar reads a tar as containerd does: names to contents.
func archiveTar(layer []byte) (map[string]string, error) {
	files := map[string]string{}
	r := tar.NewReader(bytes.NewReader(layer))
	for {
		h, err := r.Next()
		if err == io.EOF {
			return files, nil
		}
		if err != nil {
			return nil, err
		}
		b, err := io.ReadAll(r)
		if err != nil {
			return nil, err
		}
		files[h.Name] = string(b)
	}
}
