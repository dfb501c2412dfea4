package cachefiles

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lacuna-snapshotter/lacuna/ondemand"
)

// fake is a kernel that speaks real bytes: what a device cannot be made to do on
// demand. Cache files are memfds.
type fake struct {
	t       *testing.T
	dialect Dialect

	mu       sync.Mutex
	queue    [][]byte
	failing  []error // what the next reads give
	edge     bool    // something was queued since the last wait, which tells once
	woken    bool
	changed  chan struct{} // replaced with every change
	answers  map[uint32][]string
	files    map[uint32]int // our end of an object's memfd, by the OPEN's ID
	commands []string
}

func newFake(t *testing.T, d Dialect) *fake {
	return &fake{t: t, dialect: d, changed: make(chan struct{}), answers: map[uint32][]string{}, files: map[uint32]int{}}
}

func (k *fake) change() {
	close(k.changed)
	k.changed = make(chan struct{})
}

func (k *fake) push(b []byte) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.queue = append(k.queue, b)
	k.edge = true
	k.change()
}

func (k *fake) wait() (bool, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for !k.edge && !k.woken {
		changed := k.changed
		k.mu.Unlock()
		<-changed
		k.mu.Lock()
	}
	k.edge = false
	if k.woken {
		return false, errWoken
	}
	return false, nil
}

func (k *fake) wake() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.woken = true
	k.change()
}

func (k *fake) read(p []byte) (int, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if len(k.failing) > 0 && len(k.queue) > 0 {
		err := k.failing[0]
		k.failing = k.failing[1:]
		return 0, err
	}
	if len(k.queue) == 0 {
		return 0, nil
	}
	if len(k.queue[0]) > len(p) {
		k.queue = nil // a kernel keeps it; this one has no other test left
		return 0, unix.EMSGSIZE
	}
	n := copy(p, k.queue[0])
	k.queue = k.queue[1:]
	return n, nil
}

// command takes replies. A size makes the cache file as large, as the kernel
// does.
func (k *fake) command(s string) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	defer k.change()
	k.commands = append(k.commands, s)
	verb, args, _ := strings.Cut(s, " ")
	number, size, _ := strings.Cut(args, ",")
	id, err := strconv.ParseUint(number, 10, 32)
	if err != nil {
		return nil
	}
	k.answers[uint32(id)] = append(k.answers[uint32(id)], s)
	if n, err := strconv.ParseInt(size, 10, 64); verb != "cread" && err == nil && n > 0 {
		if fd, ok := k.files[uint32(id)]; ok {
			return unix.Ftruncate(fd, (n+blockSize-1)/blockSize*blockSize)
		}
	}
	return nil
}

func (k *fake) commandIn(_, s string) error { return k.command(s) }
func (k *fake) culling() bool               { return false }
func (k *fake) close() error                { return nil }

func (k *fake) complete(fd int, id uint32) error {
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err != nil {
		return err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.answers[id] = append(k.answers[id], "complete")
	k.change()
	return nil
}

// answered waits for the n-th answer to a request.
func (k *fake) answered(id uint32, n int) []string {
	k.t.Helper()
	late := time.After(30 * time.Second)
	for {
		k.mu.Lock()
		answers, changed := k.answers[id], k.changed
		k.mu.Unlock()
		if len(answers) >= n {
			return answers
		}
		select {
		case <-changed:
		case <-late:
			k.t.Fatalf("request %d has %d answers, want %d", id, len(answers), n)
		}
	}
}

// open queues an OPEN and returns the server's descriptor in it.
func (k *fake) open(id, object uint32, volume, cookie string) (fd int) {
	k.t.Helper()
	fd, err := unix.MemfdCreate("cache", 0) // not close-on-exec, like the kernel's
	if err != nil {
		k.t.Fatal(err)
	}
	ours, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		k.t.Fatal(err)
	}
	k.t.Cleanup(func() { unix.Close(ours) })
	k.mu.Lock()
	k.files[id] = ours
	k.mu.Unlock()
	k.push(encodeOpen(k.dialect, id, object, fd, volume, cookie))
	return fd
}

// content is what an object's cache file holds.
func (k *fake) content(open uint32, off, n int64) []byte {
	k.t.Helper()
	k.mu.Lock()
	fd := k.files[open]
	k.mu.Unlock()
	b := make([]byte, n)
	got, err := unix.Pread(fd, b, off)
	if err != nil {
		k.t.Fatal(err)
	}
	return b[:got]
}

func words(values ...uint32) (b []byte) {
	for _, v := range values {
		b = binary.NativeEndian.AppendUint32(b, v)
	}
	return b
}

// sized puts the whole length into a message.
func sized(b []byte) []byte {
	binary.NativeEndian.PutUint32(b[8:], uint32(len(b)))
	return b
}

func encodeOpen(d Dialect, id, object uint32, fd int, volume, cookie string) []byte {
	b := words(id, opOpen, 0)
	flags := uint32(v5WantSize)
	if d != V5 {
		b, flags = append(b, words(object)...), 0
	}
	b = append(b, words(uint32(len(volume)), uint32(len(cookie)), uint32(fd), flags)...)
	return sized(append(append(b, volume...), cookie...))
}

// encodeRead makes a READ; in v5 object is the descriptor.
func encodeRead(d Dialect, id, object uint32, off, n int64) []byte {
	b := words(id, opRead, 0)
	if d != V5 {
		b = append(b, words(object)...)
	}
	b = binary.NativeEndian.AppendUint64(b, uint64(off))
	b = binary.NativeEndian.AppendUint64(b, uint64(n))
	if d == V5 {
		b = append(b, words(object, 0)...)
	}
	return sized(b)
}

func encodeClose(id, object uint32) []byte { return sized(words(id, opClose, 0, object)) }

// volumeKey is what each dialect's kernel sends for the tests' domain.
func volumeKey(d Dialect) string {
	if d == V5 {
		return "erofs\x00"
	}
	return "erofs,test\x00"
}

// scripted is a server on a fake kernel, with one blob.
type scripted struct {
	*fake
	server *Server
	engine *ondemand.Engine
	source *controlled
	blob   *ondemand.Blob
}

// controlled is a source that waits and fails when told to.
type controlled struct {
	memory
	control sync.Mutex
	gate    chan struct{}
	err     error
}

func (c *controlled) set(gate chan struct{}, err error) {
	c.control.Lock()
	defer c.control.Unlock()
	c.gate, c.err = gate, err
}

const blobSize = 10*testSpan + 1234 // no multiple of anything

func script(t *testing.T, d Dialect) *scripted {
	t.Helper()
	s := &scripted{fake: newFake(t, d), source: &controlled{}}
	s.source.data = make([]byte, blobSize)
	for i := range s.source.data {
		s.source.data[i] = byte(i*7 + i>>8 + 1)
	}
	var err error
	if s.engine, err = ondemand.New(ondemand.Options{}); err != nil {
		t.Fatal(err)
	}
	s.server = serve(s.fake, Options{Dir: filepath.Join(t.TempDir(), "none"), Engine: s.engine, Log: testLog(t)})
	s.server.Recover()
	s.blob = s.add("blob", s.source)
	t.Cleanup(func() {
		if err := s.server.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func (s *scripted) add(cookie string, source ondemand.Source) *ondemand.Blob {
	s.t.Helper()
	key := ondemand.Key{Volume: "test", Cookie: cookie}
	st, err := s.server.Backing(key, blobSize, testSpan)
	if err != nil {
		s.t.Fatal(err)
	}
	b, err := s.engine.Open(ondemand.BlobConfig{Key: key, Size: blobSize, SpanSize: testSpan, Source: source, Backing: st})
	if err != nil {
		s.t.Fatal(err)
	}
	return b
}

// opened opens the blob's object and returns the number that READs name it by.
func (s *scripted) opened(id, object uint32) uint32 {
	s.t.Helper()
	fd := s.open(id, object, volumeKey(s.dialect), "blob")
	answers := s.answered(id, 1)
	want := fmt.Sprintf("copen %d,%d", id, blobSize)
	if s.dialect == V5 {
		want, object = fmt.Sprintf("cinit %d,%d", id, blobSize), uint32(fd)
	}
	if answers[0] != want {
		s.t.Fatalf("answer %q, want %q", answers[0], want)
	}
	return object
}

// filled checks what a cache file holds of the blob.
func (s *scripted) filled(open uint32, off, n int64) {
	s.t.Helper()
	if got := s.content(open, off, n); !bytes.Equal(got, s.source.data[off:off+n]) {
		s.t.Errorf("[%d,+%d) is wrong in the cache", off, n)
	}
}

func isOpen(fd int) bool {
	_, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0)
	return !errors.Is(err, unix.EBADF)
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("never: " + what)
		}
	}
}
