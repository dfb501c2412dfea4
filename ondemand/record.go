package ondemand

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"sync"
	"syscall"
)

// record knows which spans of a blob are filled, and which of them a machine
// that loses power would still have.
type record struct {
	*Bitmap
	disk disk
	path string // of the blob file
	head []byte // of the records, without doubt
	file file   // the running record

	// writing keeps the running record and the bitmap alike.
	writing sync.Mutex
	losses  uint64 // how often spans have become holes again

	// For sync, check and close, which come one at a time.
	durable  []byte // bits of the durable record
	doubtful bool   // the running record says so
	stale    bool   // the running record has bits that the bitmap has not
	named    bool   // the durable record's name is known to be on the disk
}

// LostError says that bytes which had been written to a blob file did not get to
// the disk. Their spans are holes again.
type LostError struct {
	Path  string
	Spans int64
	Err   error // what the kernel said
}

func (e *LostError) Error() string {
	return fmt.Sprintf("%s: the disk has lost %d spans, which will be fetched again: %v", e.Path, e.Spans, e.Err)
}

// Unwrap returns the kernel's error.
func (e *LostError) Unwrap() error { return e.Err }

// openRecord loads what can be trusted about a blob file and goes on with, or
// starts, the running record.
func openRecord(d disk, path string, h header, data file) (_ *record, err error) {
	if len(h.boot) != bootIDSize {
		return nil, fmt.Errorf("boot ID %q", h.boot)
	}
	r := &record{Bitmap: NewBitmap(h.spans), disk: d, path: path, head: h.encode()}
	r.durable = make([]byte, len(r.bits))
	b, err := r.load(durableName)
	if err != nil {
		return nil, err
	}
	copy(r.durable, h.durableBits(b))
	if b, err = r.load(runningName); err != nil {
		return nil, err
	}
	running := h.runningBits(b)
	if r.file, err = d.open(path + runningName); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			_ = r.file.Close()
		}
	}()
	if running == nil {
		// Cut first: what the disk may give back of the old bits then is
		// nothing, and a short record counts as none.
		r.replace(r.durable)
		return r, errors.Join(r.file.Truncate(0), r.write(append(bytes.Clone(r.head), r.durable...), 0))
	}
	for i, b := range r.durable {
		running[i] |= b
	}
	r.replace(running)
	// An earlier daemon may have died before the kernel told it of an error.
	var lost *LostError
	if err := r.check(data); err != nil && !errors.As(err, &lost) {
		return nil, err
	}
	return r, nil
}

// load reads a record, as much as one can be. One that is not there or that the
// disk does not give back is empty.
func (r *record) load(name string) ([]byte, error) {
	b, err := r.disk.read(r.path+name, recordHeader+int64(len(r.bits))+64)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.EIO) {
		return nil, nil
	}
	return b, err
}

func (r *record) write(b []byte, off int64) error {
	_, err := r.file.WriteAt(b, off)
	return err
}

// mark is a moment to which set can be held.
func (r *record) mark() uint64 {
	r.writing.Lock()
	defer r.writing.Unlock()
	return r.losses
}

// set marks a span whose bytes have been written since a mark. It returns false
// where spans were lost since: these bytes may be among them.
func (r *record) set(span int64, mark uint64) (bool, error) {
	r.writing.Lock()
	defer r.writing.Unlock()
	if r.losses != mark {
		return false, nil
	}
	if r.Has(span) {
		return true, nil
	}
	// Only we change bits, so this is a byte's next value.
	v := r.bits[span/8] | 1<<(span%8)
	if err := r.write([]byte{v}, recordHeader+span/8); err != nil {
		return false, err
	}
	r.Set(span)
	return true, nil
}

// allDurable reports whether nothing is filled that a loss of power would take.
func (r *record) allDurable() bool { return bytes.Equal(r.clone(), r.durable) }

// sync makes what is filled so far survive a loss of power. data is the blob
// file. After a LostError what was durable before is all that is filled.
func (r *record) sync(data file) error {
	bits := r.clone()
	if bytes.Equal(bits, r.durable) && !r.doubtful {
		return r.name() // an earlier daemon may have died before it did
	}
	err := r.doubt(true)
	if err == nil {
		err = r.file.Sync()
	}
	if err != nil {
		return errors.Join(fmt.Errorf("mark %s before a sync: %w", r.path+runningName, err), r.believe())
	}
	if err := data.Sync(); err != nil {
		return r.lose(err)
	}
	if err := r.writeDurable(bits); err != nil {
		return errors.Join(fmt.Errorf("write %s: %w", r.path+durableName, err), r.believe())
	}
	return r.believe()
}

// check is a sync's look at errors, without its writing. The record is in doubt
// meanwhile: the kernel does not report to the next daemon what it has reported to this
// one.
func (r *record) check(data file) error {
	if r.allDurable() {
		return nil
	}
	if err := r.doubt(true); err != nil {
		return err
	}
	if err := data.writeError(); err != nil {
		return r.lose(err)
	}
	return r.believe()
}

// lose takes back all spans that are not durable. The record is in doubt already.
func (r *record) lose(cause error) error {
	r.writing.Lock()
	lost := &LostError{r.path, r.Count() - count(r.durable), cause}
	r.losses++
	r.replace(r.durable)
	r.stale = true
	r.writing.Unlock()
	return errors.Join(lost, r.believe())
}

// doubt writes whether the running record is doubtful.
func (r *record) doubt(is bool) error {
	b := make([]byte, 4)
	if is {
		r.doubtful = true
		b[0] = 1
	}
	if err := r.write(b, doubtAt); err != nil {
		return err
	}
	r.doubtful = is
	return nil
}

// believe ends the doubt, if need be after bits that are no longer true are gone
// from the disk.
func (r *record) believe() error {
	if r.stale {
		r.writing.Lock()
		err := r.write(r.clone(), recordHeader)
		r.writing.Unlock()
		if err == nil {
			err = r.file.Sync()
		}
		if err != nil {
			return fmt.Errorf("write %s back, which stays in doubt: %w", r.path+runningName, err)
		}
		r.stale = false
	}
	return r.doubt(false)
}

// writeDurable replaces the durable record so that after a loss of power either
// the old or the new one is there.
func (r *record) writeDurable(bits []byte) error {
	f, err := r.disk.open(r.path + newName)
	if err != nil {
		return err
	}
	err = f.Truncate(0) // a crash may have left one
	if err == nil {
		_, err = f.WriteAt(encodeDurable(r.head, bits), 0)
	}
	if err == nil {
		err = f.Sync()
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err := r.disk.rename(r.path+newName, r.path+durableName); err != nil {
		return err
	}
	r.named = false
	if err := r.name(); err != nil {
		return err
	}
	r.durable = bits
	return nil
}

// name makes the durable record's name survive a loss of power.
func (r *record) name() error {
	if r.named {
		return nil
	}
	err := r.disk.syncDir(r.path)
	r.named = err == nil
	return err
}

// BootID is the kernel's identifier of this boot.
func BootID() (string, error) {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(b)), err
}
