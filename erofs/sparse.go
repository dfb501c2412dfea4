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

// sparseRuns returns where a sparse file has data, or nil for a file that is
// not sparse. archive/tar has checked the map's form already, but keeps it to
// itself. The formats are GNU tar's: https://www.gnu.org/software/tar/manual/html_node/Sparse-Formats.html
func sparseRuns(h *tar.Header, headers []byte) ([]sparseRun, error) {
	var numbers []string
	switch {
	case h.Typeflag == tar.TypeGNUSparse:
		runs, err := oldSparseRuns(headers)
		if err != nil {
			return nil, err
		}
		return checkRuns(runs, h.Size)
	case h.PAXRecords["GNU.sparse.major"] == "1" && h.PAXRecords["GNU.sparse.minor"] == "0":
		_, sparseMap, err := fileHeader(headers)
		if err != nil {
			return nil, err
		}
		lines := strings.Split(string(sparseMap), "\n")
		count, err := strconv.Atoi(lines[0])
		if err != nil || count < 0 || count > len(lines)/2 {
			return nil, fmt.Errorf("%w sparse map of %.20q entries", ErrInvalid, lines[0])
		}
		numbers = lines[1 : 1+2*count]
	case h.PAXRecords["GNU.sparse.map"] != "":
		numbers = strings.Split(h.PAXRecords["GNU.sparse.map"], ",")
	case h.PAXRecords["GNU.sparse.size"] != "" || h.PAXRecords["GNU.sparse.realsize"] != "":
		numbers = nil // all hole
	default:
		return nil, nil
	}
	runs := make([]sparseRun, 0, len(numbers)/2)
	for i := 0; i+1 < len(numbers); i += 2 {
		off, err1 := strconv.ParseInt(numbers[i], 10, 64)
		n, err2 := strconv.ParseInt(numbers[i+1], 10, 64)
		if err1 != nil || err2 != nil {
			return nil, fmt.Errorf("%w sparse map entry %.40q", ErrInvalid, numbers[i:i+2])
		}
		runs = append(runs, sparseRun{off, n})
	}
	return checkRuns(runs, h.Size)
}

func checkRuns(runs []sparseRun, size int64) ([]sparseRun, error) {
	var end int64
	kept := make([]sparseRun, 0, len(runs))
	for _, r := range runs {
		if r.off < end || r.len < 0 || r.off > size || r.len > size-r.off {
			return nil, fmt.Errorf("%w sparse map: data at [%d,+%d) of %d bytes", ErrInvalid, r.off, r.len, size)
		}
		end = r.off + r.len
		if r.len > 0 {
			kept = append(kept, r)
		}
	}
	return kept, nil
}

// fileHeader finds the header block of the entry itself behind the special
// ones before it, and what follows it.
func fileHeader(headers []byte) (block, rest []byte, err error) {
	for len(headers) >= tarBlock {
		block, rest = headers[:tarBlock], headers[tarBlock:]
		switch block[156] { // typeflag
		case tar.TypeXHeader, tar.TypeXGlobalHeader, tar.TypeGNULongName, tar.TypeGNULongLink:
			size, ok := tarNumber(block[124:136])
			if !ok || alignUp(size, tarBlock) > int64(len(rest)) {
				return nil, nil, fmt.Errorf("%w special header", ErrInvalid)
			}
			headers = rest[alignUp(size, tarBlock):]
		default:
			return block, rest, nil
		}
	}
	return nil, nil, fmt.Errorf("%w sparse entry without a header", ErrInvalid)
}

// oldSparseRuns reads the map of an old GNU sparse entry: four entries at 386
// of the header, then extension blocks of 21, each with a continuation flag.
func oldSparseRuns(headers []byte) ([]sparseRun, error) {
	block, rest, err := fileHeader(headers)
	if err != nil {
		return nil, err
	}
	var runs []sparseRun
	entries, more := block[386:482], block[482] != 0
	for {
		for ; len(entries) >= 24 && entries[0] != 0; entries = entries[24:] {
			off, ok1 := tarNumber(entries[:12])
			n, ok2 := tarNumber(entries[12:24])
			if !ok1 || !ok2 {
				return nil, fmt.Errorf("%w sparse map entry", ErrInvalid)
			}
			runs = append(runs, sparseRun{off, n})
		}
		if !more {
			return runs, nil
		}
		if len(rest) < tarBlock {
			return nil, fmt.Errorf("%w sparse map: cut off", ErrInvalid)
		}
		entries, more = rest[:504], rest[504] != 0
		rest = rest[tarBlock:]
	}
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
