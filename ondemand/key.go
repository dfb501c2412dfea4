package ondemand

import (
	"fmt"
	"sync"
)

// Key names a blob, in the kernel's words for cachefiles: a volume, which is
// the domain that layers are shared in, and a cookie, one object of it. A key is
// never given to other bytes: the kernel may remember pages, sizes and objects by
// it for longer than there is a blob.
type Key struct {
	Volume string
	Cookie string
}

func (k Key) String() string { return k.Volume + "/" + k.Cookie }

// Table finds blobs by key.
type Table struct {
	mu    sync.RWMutex
	blobs map[Key]*Blob // nil for a key whose blob is being opened or closed
}

// ExistsError says that a key is taken.
type ExistsError struct{ Key Key }

func (e ExistsError) Error() string { return fmt.Sprintf("blob %s is already open", e.Key) }

// reserve takes a key, so that no other Open touches its blob's files.
func (t *Table) reserve(k Key) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if _, taken := t.blobs[k]; taken {
		return ExistsError{k}
	}
	if t.blobs == nil {
		t.blobs = map[Key]*Blob{}
	}
	t.blobs[k] = nil
	return nil
}

// set lets a reserved key's blob be found, or no longer where it is nil.
func (t *Table) set(k Key, b *Blob) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.blobs[k] = b
}

// free gives a key back.
func (t *Table) free(k Key) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.blobs, k)
}

// Lookup returns the blob with a key, or nil.
func (t *Table) Lookup(k Key) *Blob {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.blobs[k]
}

// All lists the open blobs.
func (t *Table) All() []*Blob {
	t.mu.RLock()
	defer t.mu.RUnlock()
	list := make([]*Blob, 0, len(t.blobs))
	for _, b := range t.blobs {
		if b != nil {
			list = append(list, b)
		}
	}
	return list
}
