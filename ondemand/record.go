package ondemand

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/containerd/continuity"
)

// A record file is a header of 64 bytes and the bitmap, span 0 in the lowest
// bit of the first byte. Little-endian:
//
//	0   8   magic "LACUNAR1"
//	8   8   spans
//	16  8   bytes in a span
//	24  36  boot ID as the kernel prints it
//	60  4   zero
//
// The durable record has the SHA-256 of all before it at its end.
const (
	recordMagic  = "LACUNAR1"
	recordHeader = 64
	bootIDSize   = 36

	runningName = ".spans"
	durableName = ".durable"
)

// record knows which spans of a blob are filled, and which of them a machine
// that loses power would still have.
type record struct {
	*Bitmap
	path     string // of the blob file
	header   []byte
	syncing  sync.Mutex
	file     *os.File // of the running record
	unsynced bool     // guarded by Bitmap.mu
}

// openRecord loads what can be trusted and starts the running record of this
// boot.
func openRecord(path string, spans, spanSize int64, bootID string) (*record, error) {
	if len(bootID) != bootIDSize {
		return nil, fmt.Errorf("boot ID %q", bootID)
	}
	r := &record{Bitmap: NewBitmap(spans), path: path}
	r.header = append(r.header, recordMagic...)
	r.header = binary.LittleEndian.AppendUint64(r.header, uint64(spans))
	r.header = binary.LittleEndian.AppendUint64(r.header, uint64(spanSize))
	r.header = append(append(r.header, bootID...), 0, 0, 0, 0)

	durable := r.load(path+durableName, false)
	running := r.load(path+runningName, true)
	f, err := os.OpenFile(path+runningName, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if running != nil {
		copy(r.bits, running)
	} else {
		copy(r.bits, durable)
		if err := errors.Join(f.Truncate(0), writeAt(f, append(bytes.Clone(r.header), r.bits...), 0)); err != nil {
			f.Close()
			return nil, err
		}
	}
	r.file = f
	r.filled = count(r.bits)
	r.unsynced = r.filled > count(durable)
	return r, nil
}

func writeAt(f *os.File, b []byte, off int64) error {
	_, err := f.WriteAt(b, off)
	return err
}

// load reads a record's bitmap, nil where it is missing, torn, of another blob
// or, for the running record, of another boot.
func (r *record) load(name string, running bool) []byte {
	b, err := os.ReadFile(name)
	if err != nil {
		return nil
	}
	size := recordHeader + len(r.bits)
	same := len(r.header)
	if !running {
		if len(b) != size+sha256.Size || sha256.Sum256(b[:size]) != [sha256.Size]byte(b[size:]) {
			return nil
		}
		same -= bootIDSize + 4
	}
	if len(b) < size || !bytes.Equal(b[:same], r.header[:same]) {
		return nil
	}
	bitmap := b[recordHeader:size]
	if extra := uint(len(r.bits)*8) - uint(r.spans); extra > 0 && len(bitmap) > 0 {
		bitmap[len(bitmap)-1] &= 0xff >> extra
	}
	return bitmap
}

func count(bitmap []byte) (n int64) {
	for _, b := range bitmap {
		n += int64(bits.OnesCount8(b))
	}
	return n
}

// set marks a span whose bytes have been written.
func (r *record) set(span int64) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.bits[span/8]>>(span%8)&1 == 1 {
		return nil
	}
	v := r.bits[span/8] | 1<<(span%8)
	if err := writeAt(r.file, []byte{v}, recordHeader+span/8); err != nil {
		return err
	}
	r.bits[span/8] = v
	r.filled++
	r.unsynced = true
	return nil
}

// sync makes what is filled so far survive a loss of power. data is the blob
// file.
func (r *record) sync(data *os.File) error {
	r.syncing.Lock()
	defer r.syncing.Unlock()
	r.mu.Lock()
	if !r.unsynced {
		r.mu.Unlock()
		return nil
	}
	b := append(bytes.Clone(r.header), r.bits...)
	r.unsynced = false
	r.mu.Unlock()

	err := data.Sync()
	if err == nil {
		sum := sha256.Sum256(b)
		err = replaceFile(r.path+durableName, append(b, sum[:]...))
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if err != nil {
		r.unsynced = true
		return fmt.Errorf("sync %s: %w", r.path, err)
	}
	return nil
}

// replaceFile writes a file so that after a loss of power either the old or
// the new one is there.
func replaceFile(path string, b []byte) error {
	if err := continuity.AtomicWriteFile(path, b, 0o600); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

func (r *record) close() error { return r.file.Close() }

// BootID is the kernel's identifier of this boot.
func BootID() (string, error) {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(b)), err
}
