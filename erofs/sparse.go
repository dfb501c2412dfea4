package erofs

import (
	"archive/tar"
	"bytes"
	"fmt"
	"strconv"
	"strings"
)

const tarBlock = 512

// sparseRun is a part of a sparse file that has data.
type sparseRun struct{ off, len int64 }

// sparseRuns returns where a sparse file has data; sparse is false for a file that is
// not sparse. A file is sparse where archive/tar says so, since containerd unpacks
// what archive/tar reads (readGNUSparsePAXHeaders in reader.go): a size alone does not
// make a file sparse, and neither does a version that archive/tar does not know.
// archive/tar has checked the form of the map already, but does not return it. The
// formats are
// GNU tar's: https://www.gnu.org/software/tar/manual/html_node/Sparse-Formats.html
func sparseRuns(h *tar.Header, headers []byte) (runs []sparseRun, sparse bool, err error) {
	const key = "GNU.sparse."
	major, minor := h.PAXRecords[key+"major"], h.PAXRecords[key+"minor"]
	inHeader := major == "0" && (minor == "0" || minor == "1") ||
		major == "" && minor == "" && h.PAXRecords[key+"map"] != ""
	inData := major == "1" && minor == "0"
	if !inHeader && !inData {
		return nil, false, nil
	}
	entry, rest, err := fileHeader(headers)
	if err != nil {
		return nil, false, err
	}
	left, ok := physicalSize(h, entry) // bytes of the entry in the tar
	if !ok {
		return nil, false, fmt.Errorf("%w sparse entry: its size in the tar", ErrInvalid)
	}
	var numbers []string
	if inData {
		if numbers, err = dataMap(rest); err != nil {
			return nil, false, err
		}
		left -= int64(len(rest))
	} else if text := h.PAXRecords[key+"map"]; text != "" {
		numbers = strings.Split(text, ",")
	}
	runs, err = parseRuns(numbers, h.Size, left)
	return runs, true, err
}

// dataMap splits the map that precedes the data of version 1.0: the number of
// entries, then the offset and the length of each, one number a line, padded to whole
// blocks.
func dataMap(b []byte) ([]string, error) {
	first, _, _ := bytes.Cut(b, []byte("\n"))
	count, err := strconv.Atoi(string(first))
	if err != nil || count < 0 || count > len(b)/4 {
		return nil, fmt.Errorf("%w sparse map of %.20q entries", ErrInvalid, first)
	}
	lines := strings.SplitN(string(b), "\n", 2*count+2)
	if len(lines) != 2*count+2 {
		return nil, fmt.Errorf("%w sparse map: cut off", ErrInvalid)
	}
	return lines[1 : 1+2*count], nil
}

// parseRuns reads pairs of offset and length, ascending, within a file of size
// bytes, which together are the stored bytes of the entry.
func parseRuns(numbers []string, size, stored int64) ([]sparseRun, error) {
	var end int64
	kept := make([]sparseRun, 0, len(numbers)/2)
	for i := 0; i+1 < len(numbers); i += 2 {
		off, err1 := strconv.ParseInt(numbers[i], 10, 64)
		n, err2 := strconv.ParseInt(numbers[i+1], 10, 64)
		if err1 != nil || err2 != nil || off < end || n < 0 || off > size || n > size-off {
			return nil, fmt.Errorf("%w sparse map: data at [%.20q,+%.20q) of %d bytes", ErrInvalid, numbers[i], numbers[i+1], size)
		}
		end = off + n
		stored -= n
		if n > 0 {
			kept = append(kept, sparseRun{off, n})
		}
	}
	if stored != 0 {
		return nil, fmt.Errorf("%w sparse map: %d bytes more in the tar than in the map", ErrInvalid, stored)
	}
	return kept, nil
}

// physicalSize is the size of an entry in the tar, which archive/tar replaces with the
// size of the sparse file.
func physicalSize(h *tar.Header, block []byte) (int64, bool) {
	if text := h.PAXRecords["size"]; text != "" {
		n, err := strconv.ParseInt(text, 10, 64)
		return n, err == nil && n >= 0
	}
	return tarNumber(block[124:136])
}

// fileHeader finds the header block of the entry itself, after the special ones before
// it, and returns it with the bytes that follow.
func fileHeader(headers []byte) (block, rest []byte, err error) {
	for len(headers) >= tarBlock {
		block, rest = headers[:tarBlock], headers[tarBlock:]
		switch block[156] { // typeflag
		case tar.TypeXHeader, tar.TypeGNULongName, tar.TypeGNULongLink:
			size, ok := tarNumber(block[124:136])
			if !ok || size > int64(len(rest)) || alignUp(size, tarBlock) > int64(len(rest)) {
				return nil, nil, fmt.Errorf("%w special header", ErrInvalid)
			}
			headers = rest[alignUp(size, tarBlock):]
		default:
			return block, rest, nil
		}
	}
	return nil, nil, fmt.Errorf("%w sparse entry without a header", ErrInvalid)
}

// tarNumber reads octal text, or GNU's base 256 with the top bit set.
func tarNumber(b []byte) (int64, bool) {
	if b[0]&0x80 != 0 {
		n := int64(b[0] & 0x3f)
		for _, c := range b[1:] {
			if n >= 1<<54 {
				return 0, false
			}
			n = n<<8 | int64(c)
		}
		return n, b[0]&0x40 == 0
	}
	text := string(bytes.Trim(b, " \x00"))
	if text == "" {
		return 0, true
	}
	n, err := strconv.ParseInt(text, 8, 64)
	return n, err == nil && n >= 0
}
