package cachefiles

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/lacuna-snapshotter/lacuna/ondemand"
)

// Fetch implements ondemand.Source.
func (c *controlled) Fetch(ctx context.Context, first, last int64, put func(int64, []byte) error) error {
	c.control.Lock()
	gate, err := c.gate, c.err
	c.control.Unlock()
	if gate != nil {
		select {
		case <-gate:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if err != nil {
		return err
	}
	return c.memory.Fetch(ctx, first, last, put)
}

// both runs a script in each dialect.
func both(t *testing.T, f func(t *testing.T, s *scripted)) {
	for _, d := range []Dialect{Mainline, V5} {
		t.Run(d.String(), func(t *testing.T) { f(t, script(t, d)) })
	}
}

func TestOpenReadClose(t *testing.T) {
	both(t, func(t *testing.T, s *scripted) {
		fd := s.open(0, 1, volumeKey(s.dialect), "blob") // the kernel's first ID is 0
		if a := s.answered(0, 1); !strings.HasSuffix(a[0], fmt.Sprintf(" 0,%d", blobSize)) {
			t.Fatal(a)
		}
		object := uint32(1)
		if s.dialect == V5 {
			object = uint32(fd)
		}
		if flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err != nil {
			t.Error(flags, err)
		}
		for i, r := range [][2]int64{
			{4096, 4096},                        // a block
			{testSpan - 4096, 8192},             // over a border
			{10 * testSpan, 4096},               // past the blob's end, in its last block
			{8 * testSpan, 4 * testSpan},        // past the end by more
			{blobSize/4096*4096 + 8192, 4096},   // all of it past the end
			{2*testSpan + 1000, testSpan + 777}, // unaligned
		} {
			id := uint32(i + 1)
			s.push(encodeRead(s.dialect, id, object, r[0], r[1]))
			s.answered(id, 1)
			if end := min(r[0]+r[1], blobSize); end > r[0] {
				s.filled(0, r[0], end-r[0])
			}
		}
		tail := s.content(0, blobSize, 4096)
		for _, b := range tail {
			if b != 0 {
				t.Error("the last block is not padded with zeros")
				break
			}
		}
		s.push(encodeClose(99, object))
		eventually(t, "the descriptor is closed", func() bool { return !isOpen(fd) })
		for id := range uint32(7) {
			if a := s.answered(id, 1); len(a) != 1 {
				t.Errorf("request %d has answers %q", id, a)
			}
		}
	})
}

func TestIDsAreReused(t *testing.T) {
	both(t, func(t *testing.T, s *scripted) {
		object := s.opened(0, 1)
		for n := range int64(8) {
			s.push(encodeRead(s.dialect, 5, object, n*testSpan, 4096))
			s.answered(5, int(n)+1)
			s.filled(0, n*testSpan, 4096)
		}
	})
}

func TestRestoredRequestsAreAnsweredOnce(t *testing.T) {
	s := script(t, Mainline)
	object := s.opened(0, 1)
	gate := make(chan struct{})
	s.source.set(gate, nil)
	s.push(encodeRead(s.dialect, 7, object, 0, 4096))
	s.push(encodeRead(s.dialect, 7, object, 0, 4096))
	s.push(encodeRead(s.dialect, 8, object, testSpan, 4096))
	eventually(t, "the queue is read", func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return len(s.queue) == 0
	})
	close(gate)
	s.answered(8, 1)
	if a := s.answered(7, 1); len(a) != 1 {
		t.Errorf("answers %q", a)
	}
}

func TestUnknownKeys(t *testing.T) {
	both(t, func(t *testing.T, s *scripted) {
		fd := s.open(3, 9, volumeKey(s.dialect), "nobody's")
		want := "copen 3,-2"
		if s.dialect == V5 {
			want = "cinit 3,0"
		}
		if a := s.answered(3, 1); a[0] != want {
			t.Errorf("answered %q, want %q", a, want)
		}
		eventually(t, "the descriptor is closed", func() bool { return !isOpen(fd) })
		s.opened(4, 10) // others go on
	})
}

func TestKeysAreBytes(t *testing.T) {
	both(t, func(t *testing.T, s *scripted) {
		var all [256]byte
		for i := range all {
			all[i] = byte(i)
		}
		for i, cookie := range []string{
			string(all[:]),                    // every byte
			strings.Repeat("\x00", 20),        // nothing but zeros
			strings.Repeat("k", 1024-32-11-1), // as long as a message allows
			"",                                // none
			"a/b,c \"quoted\"",
		} {
			s.add(cookie, s.source)
			id := uint32(i)
			s.open(id, id+1, volumeKey(s.dialect), cookie)
			if a := s.answered(id, 1); !strings.HasSuffix(a[0], fmt.Sprint(",", blobSize)) {
				t.Errorf("cookie %d: %q", i, a)
			}
		}
	})
}

func TestFailureCompletesWithoutData(t *testing.T) {
	both(t, func(t *testing.T, s *scripted) {
		object := s.opened(0, 1)
		s.source.set(nil, errors.New("registry down"))
		s.push(encodeRead(s.dialect, 1, object, 0, 8192))
		s.answered(1, 1)
		if from, err := unix.Seek(s.files[0], 0, unix.SEEK_DATA); !errors.Is(err, unix.ENXIO) {
			t.Errorf("data at %d: %v", from, err)
		}
		s.source.set(nil, nil)
		s.push(encodeRead(s.dialect, 1, object, 0, 8192))
		s.answered(1, 2)
		s.filled(0, 0, 8192)
	})
}

// TestCloseWhileFilling has the kernel drop an object under a fill.
func TestCloseWhileFilling(t *testing.T) {
	both(t, func(t *testing.T, s *scripted) {
		fd := s.open(0, 1, volumeKey(s.dialect), "blob")
		s.answered(0, 1)
		object := uint32(1)
		if s.dialect == V5 {
			object = uint32(fd)
		}
		gate := make(chan struct{})
		s.source.set(gate, nil)
		s.push(encodeRead(s.dialect, 1, object, 0, 4096))
		eventually(t, "the READ is worked on", func() bool {
			s.server.mu.Lock()
			defer s.server.mu.Unlock()
			return len(s.server.reading) == 1
		})
		s.push(encodeClose(2, object))
		eventually(t, "the descriptor is closed", func() bool { return !isOpen(fd) })
		close(gate)
		eventually(t, "the fill has ended", func() bool {
			s.server.mu.Lock()
			defer s.server.mu.Unlock()
			return len(s.server.reading) == 0
		})
		if s.blob.Filled() != 0 {
			t.Error("what was never written counts as filled")
		}
		// The next mount opens it again.
		s.source.set(nil, nil)
		again := s.opened(10, 2)
		s.push(encodeRead(s.dialect, 11, again, 0, 4096))
		s.answered(11, 1)
		s.filled(10, 0, 4096)
	})
}

// TestDescriptorGoesEarly has somebody close what is ours.
func TestDescriptorGoesEarly(t *testing.T) {
	s := script(t, Mainline)
	fd := s.open(0, 1, volumeKey(s.dialect), "blob")
	s.answered(0, 1)
	eventually(t, "the object is bound", func() bool {
		s.server.mu.Lock()
		defer s.server.mu.Unlock()
		return s.server.objects[1].bound() != nil
	})
	<-s.server.objects[1].opened
	// In its place a file that takes no writes.
	null, err := os.Open("/dev/null")
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	if err := unix.Dup2(int(null.Fd()), fd); err != nil {
		t.Fatal(err)
	}
	s.push(encodeRead(s.dialect, 1, 1, 0, 4096))
	s.answered(1, 1) // without data: the reader gets EIO
	if s.blob.Filled() != 0 {
		t.Error("what could not be written counts as filled")
	}
}

// TestKernelIsRightAboutHoles has the kernel ask for what counts as filled.
func TestKernelIsRightAboutHoles(t *testing.T) {
	s := script(t, Mainline)
	object := s.opened(0, 1)
	s.push(encodeRead(s.dialect, 1, object, 0, 2*testSpan))
	s.answered(1, 1)
	if err := unix.Fallocate(s.files[0], unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 0, testSpan); err != nil {
		t.Fatal(err)
	}
	s.push(encodeRead(s.dialect, 2, object, 0, 4096))
	s.answered(2, 1)
	s.filled(0, 0, 2*testSpan)
}

// TestWhatTheCacheHoldsIsNotFetched opens a cache file of an earlier mount.
func TestWhatTheCacheHoldsIsNotFetched(t *testing.T) {
	s := script(t, Mainline)
	object := s.opened(0, 1)
	s.push(encodeRead(s.dialect, 1, object, 0, blobSize))
	s.answered(1, 1)
	s.push(encodeClose(2, object))
	eventually(t, "the backing is unbound", func() bool { return s.blob.Filled() == 0 })
	before := s.source.spans()

	fd, err := unix.FcntlInt(uintptr(s.files[0]), unix.F_DUPFD, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Fallocate(fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 3*testSpan+4096, 4096); err != nil {
		t.Fatal(err)
	}
	s.push(encodeOpen(s.dialect, 3, 2, fd, volumeKey(s.dialect), "blob"))
	s.answered(3, 1)
	eventually(t, "the cache file is looked at", func() bool { return s.blob.Filled() == blobSize/testSpan*testSpan })
	s.push(encodeRead(s.dialect, 4, 2, 0, blobSize))
	s.answered(4, 1)
	if again := s.source.spans() - before; again != 1 {
		t.Errorf("%d spans were fetched again, one has a hole", again)
	}
	if !s.blob.Complete() {
		t.Error("not complete")
	}
}

// TestNonsense is a kernel gone mad: nothing of it stops the others.
func TestNonsense(t *testing.T) {
	both(t, func(t *testing.T, s *scripted) {
		object := s.opened(0, 1)
		s.push(sized(words(50, 77, 0, 1)))                      // an opcode of the future
		s.push([]byte{1, 2, 3})                                 // no message
		s.push(encodeRead(s.dialect, 51, 4444, 0, 4096))        // an object that never was
		s.push(encodeClose(52, 4444))                           // likewise
		s.push(encodeRead(s.dialect, 53, object, -4096, 4096))  // before the beginning
		s.push(encodeRead(s.dialect, 54, object, 1<<62, 1<<62)) // beyond everything
		cut := encodeOpen(s.dialect, 55, 5, -1, "erofs,x\x00", "y")
		s.push(cut[:len(cut)-1])
		s.push(encodeRead(s.dialect, 60, object, 0, 4096))
		s.answered(60, 1)
		s.filled(0, 0, 4096)
		if s.dialect == V5 {
			s.answered(51, 1) // v5 waits for an answer to every READ
		}
	})
}

func TestMessageTooLarge(t *testing.T) {
	s := script(t, Mainline)
	object := s.opened(0, 1)
	s.push(make([]byte, maxMessage+1))
	eventually(t, "the message is refused", func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return len(s.queue) == 0
	})
	s.push(encodeRead(s.dialect, 1, object, 0, 4096))
	s.answered(1, 1)
}

// TestTenThousandObjects opens, reads and closes them, and keeps none.
func TestTenThousandObjects(t *testing.T) {
	both(t, func(t *testing.T, s *scripted) {
		const objects, together = 10000, 500
		before := descriptors(t)
		for base := uint32(0); base < objects; base += together {
			fds := make([]int, together)
			numbers := make([]uint32, together)
			for i := range uint32(together) {
				id := base + i
				fds[i] = s.open(id, id+1, volumeKey(s.dialect), "blob")
				numbers[i] = id + 1
				if s.dialect == V5 {
					numbers[i] = uint32(fds[i])
				}
			}
			for i := range uint32(together) {
				s.answered(base+i, 1)
				s.push(encodeClose(1<<20+base+i, numbers[i]))
			}
			for _, fd := range fds {
				eventually(t, "the descriptor is closed", func() bool { return !isOpen(fd) })
			}
			s.mu.Lock()
			for id, fd := range s.files { // the kernel's end
				unix.Close(fd)
				delete(s.files, id)
			}
			s.mu.Unlock()
		}
		if after := descriptors(t); after > before+5 {
			t.Errorf("%d descriptors, %d before", after, before)
		}
		if n := len(s.server.objects); n != 0 {
			t.Errorf("%d objects are left", n)
		}
	})
}

func descriptors(t *testing.T) int {
	t.Helper()
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(list)
}

// TestCloseAnswersAll has a fill under way when the server closes.
func TestCloseAnswersAll(t *testing.T) {
	both(t, func(t *testing.T, s *scripted) {
		object := s.opened(0, 1)
		s.source.set(make(chan struct{}), nil) // for ever
		for id := range uint32(20) {
			s.push(encodeRead(s.dialect, id+1, object, int64(id%10)*testSpan, 4096))
		}
		eventually(t, "all are worked on", func() bool {
			s.server.mu.Lock()
			defer s.server.mu.Unlock()
			return len(s.server.reading) == 20
		})
		s.server.End()
		s.server.stop()
		s.server.WaitAll()
		for id := range uint32(20) {
			if a := s.answered(id+1, 1); len(a) != 1 {
				t.Errorf("request %d: %q", id+1, a)
			}
		}
	})
}

// TestReadsFailForAWhile has the kernel unable to make a descriptor for an OPEN,
// with more requests queued that it will tell of no more.
func TestReadsFailForAWhile(t *testing.T) {
	s := script(t, Mainline)
	object := s.opened(1, 7)
	s.mu.Lock()
	s.failing = []error{unix.EMFILE, unix.ENOMEM, unix.EINTR, unix.EIO}
	for id := range uint32(3) {
		s.queue = append(s.queue, encodeRead(Mainline, 10+id, object, int64(id)*testSpan, testSpan))
	}
	s.edge = true
	s.change()
	s.mu.Unlock()
	for id := range uint32(3) {
		s.answered(10+id, 1)
	}
	select {
	case err := <-s.server.Failed():
		t.Error("failed for good:", err)
	default:
	}
}

// TestReadsFailForGood has the process told that it is deaf.
func TestReadsFailForGood(t *testing.T) {
	s := script(t, Mainline)
	s.mu.Lock()
	s.failing = []error{unix.EBADF}
	s.mu.Unlock()
	s.push(encodeClose(1, 7))
	if err := <-s.server.Failed(); !errors.Is(err, unix.EBADF) {
		t.Error(err)
	}
}

// TestDetachWaitsForTheKernel detaches a blob before and after the kernel has closed
// its object, as it does after the last unmount.
func TestDetachWaitsForTheKernel(t *testing.T) {
	s := script(t, Mainline)
	boot := filepath.Join(t.TempDir(), "bootstrap")
	if err := os.WriteFile(boot, make([]byte, testSpan), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := s.server.Attach(s.blob, boot); err != nil {
		t.Fatal(err)
	}
	object := s.opened(1, 7)
	for range 2 {
		if err := s.server.Detach(s.blob); !errors.Is(err, ondemand.ErrBusy) {
			t.Fatal(err)
		}
	}
	if !s.server.Needed() {
		t.Error("not needed, with an object open")
	}
	s.push(encodeRead(Mainline, 2, object, 0, testSpan)) // it is served on
	s.answered(2, 1)
	s.filled(1, 0, testSpan)
	s.push(encodeClose(3, 7))
	for range 2 {
		if err := s.server.Detach(s.blob); err != nil {
			t.Error(err)
		}
	}
	if s.server.Needed() {
		t.Error("needed, with no object open")
	}
}
