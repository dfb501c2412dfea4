package ondemand

import (
	"errors"
	"io"
	"io/fs"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"syscall"
)

// memDisk is a file system with a page cache, below which is a disk. Calls can be
// made to fail, the kernel's own writing too, and the process or the machine can
// die. Where pages could not be written they are dropped at once, which a kernel
// may do.
type memDisk struct {
	mu     sync.Mutex
	names  map[string]*memInode // as processes see them
	synced map[string]*memInode // as they are at least after a loss of power
	born   int64
	step   int               // changing calls so far
	faults map[int]faultKind // by step
	dead   bool
	syncs  int // of files
}

type faultKind int

const (
	failCall  faultKind = iota // half of a write is done; a sync loses the pages
	noRoom                     // half of a write is done; the rest is as usual
	die                        // the process dies before the call
	dieHalf                    // in a write
	dropBlob                   // the kernel fails to write the blob file
	dropSpans                  // and the running record
	faultKinds
)

// memInode has an error counter as the kernel's errseq_t.
type memInode struct {
	cache, disk []byte
	born        int64
	errors      int
	seen        bool
}

var errDead = errors.New("the process is dead")

func newMemDisk() *memDisk {
	return &memDisk{names: map[string]*memInode{}, synced: map[string]*memInode{}}
}

// change counts a call that changes something. It returns an error for a call
// that is not to be made.
func (d *memDisk) change() (kind faultKind, has bool, err error) {
	d.step++
	kind, has = d.faults[d.step]
	switch {
	case d.dead:
		return 0, false, errDead
	case has && kind == die:
		d.dead = true
		return 0, false, errDead
	case has && (kind == dropBlob || kind == dropSpans):
		name := map[faultKind]string{dropBlob: "blob", dropSpans: "blob" + runningName}[kind]
		if n := d.names[name]; n != nil {
			n.drop()
		}
		return 0, false, nil
	}
	return kind, has, nil
}

func (n *memInode) drop() {
	n.errors++
	n.seen = false
	size := len(n.cache)
	n.cache = slices.Clone(n.disk)
	n.resize(size)
}

func (n *memInode) resize(size int) {
	if size <= len(n.cache) {
		n.cache = n.cache[:size]
		return
	}
	n.cache = append(n.cache, make([]byte, size-len(n.cache))...)
}

func (d *memDisk) open(path string) (file, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.dead {
		return nil, errDead
	}
	n := d.names[path]
	if n == nil {
		if kind, has, err := d.change(); err != nil || has && kind != dieHalf {
			return nil, errors.Join(err, syscall.ENOSPC)
		}
		d.born++
		n = &memInode{born: d.born}
		d.names[path] = n
	}
	f := &memFile{d: d, n: n, since: n.errors}
	if !n.seen && n.errors > 0 {
		f.since-- // lib/errseq.c, errseq_sample
	}
	return f, nil
}

func (d *memDisk) read(path string, most int64) ([]byte, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	n := d.names[path]
	switch {
	case d.dead:
		return nil, errDead
	case n == nil:
		return nil, fs.ErrNotExist
	}
	return slices.Clone(n.cache[:min(int64(len(n.cache)), most)]), nil
}

func (d *memDisk) rename(from, to string) error {
	return d.simple(func() { d.names[to] = d.names[from]; delete(d.names, from) })
}

func (d *memDisk) syncDir(string) error {
	return d.simple(func() { d.synced = maps.Clone(d.names) })
}

func (d *memDisk) remove(path string) error {
	d.mu.Lock()
	missing := d.names[path] == nil
	d.mu.Unlock()
	if missing {
		return fs.ErrNotExist
	}
	return d.simple(func() { delete(d.names, path) })
}

func (d *memDisk) simple(do func()) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if kind, has, err := d.change(); err != nil || has && kind != dieHalf {
		return errors.Join(err, syscall.EIO)
	}
	do()
	return nil
}

// restart brings the process back to life, with no more faults.
func (d *memDisk) restart() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.dead, d.faults = false, nil
}

// clone is the same disk again, for one more way to go on.
func (d *memDisk) clone() *memDisk {
	d.mu.Lock()
	defer d.mu.Unlock()
	same := map[*memInode]*memInode{}
	copied := func(names map[string]*memInode) map[string]*memInode {
		to := map[string]*memInode{}
		for name, n := range names {
			if same[n] == nil {
				c := *n
				c.cache, c.disk = slices.Clone(n.cache), slices.Clone(n.disk)
				same[n] = &c
			}
			to[name] = same[n]
		}
		return to
	}
	return &memDisk{names: copied(d.names), synced: copied(d.synced), born: d.born}
}

// powerLoss is the disk after a reboot: of each file what was synced, and of the
// rest of its pages some; of the names the synced ones or all.
func (d *memDisk) powerLoss(r *rand.Rand) *memDisk {
	d = d.clone()
	if r.IntN(2) == 0 {
		d.names = d.synced
	}
	every := r.IntN(3) // all pages, none, or some
	for _, n := range d.names {
		if n.disk == nil && every != 0 {
			n.cache = nil
			continue
		}
		old := slices.Clone(n.disk)
		old = append(old, make([]byte, max(0, len(n.cache)-len(old)))...)[:len(n.cache)]
		for at := 0; at < len(n.cache); at += testSpan {
			if every == 1 || every == 2 && r.IntN(2) == 0 {
				copy(n.cache[at:min(at+testSpan, len(n.cache))], old[at:])
			}
		}
		n.disk, n.errors = slices.Clone(n.cache), 0
	}
	d.synced = maps.Clone(d.names)
	return d
}

type memFile struct {
	d     *memDisk
	n     *memInode
	since int
}

func (f *memFile) ReadAt(p []byte, off int64) (int, error) {
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	if off >= int64(len(f.n.cache)) {
		return 0, io.EOF
	}
	return copy(p, f.n.cache[off:]), nil
}

func (f *memFile) WriteAt(p []byte, off int64) (int, error) {
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	kind, has, err := f.d.change()
	if err != nil {
		return 0, err
	}
	if has {
		p = p[:len(p)/2]
	}
	f.n.resize(max(len(f.n.cache), int(off)+len(p)))
	n := copy(f.n.cache[off:], p)
	switch {
	case has && kind == dieHalf:
		f.d.dead = true
		return n, errDead
	case has:
		return n, syscall.ENOSPC
	}
	return n, nil
}

func (f *memFile) Truncate(size int64) error {
	return f.d.simple(func() {
		f.n.resize(int(size))
		f.n.disk = f.n.disk[:min(len(f.n.disk), int(size))] // blocks are freed
	})
}

func (f *memFile) Sync() error {
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	f.d.syncs++
	kind, has, err := f.d.change()
	switch {
	case err != nil:
		return err
	case has && kind == failCall:
		f.n.drop()
	case has && kind == noRoom:
		return f.error(syscall.ENOSPC)
	default:
		f.n.disk = slices.Clone(f.n.cache)
	}
	return f.error(nil)
}

// error tells the file's error once.
func (f *memFile) error(err error) error {
	if f.since != f.n.errors {
		f.since, f.n.seen = f.n.errors, true
		return syscall.EIO
	}
	return err
}

func (f *memFile) writeError() error {
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	if _, _, err := f.d.change(); err != nil {
		return nil
	}
	return f.error(nil)
}

func (f *memFile) size() (int64, error) {
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	if f.d.dead {
		return 0, errDead
	}
	return int64(len(f.n.cache)), nil
}

func (f *memFile) identity() (identity, error) {
	return identity{inode: 12, birth: f.n.born, known: hasBirth}, nil
}

func (f *memFile) Close() error { return nil }

// syncsOf counts what a function syncs.
func (d *memDisk) syncsOf(f func()) int {
	before := d.syncs
	f()
	return d.syncs - before
}

func (k faultKind) String() string {
	return strings.Fields("fail noRoom die dieHalf dropBlob dropSpans")[k]
}
