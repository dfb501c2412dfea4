package fuse

import (
	"encoding/binary"
	"errors"
	"fmt"
	"log"
	"log/slog"
	"os"
	"sync"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/lacuna-snapshotter/lacuna/internal/descriptor"
	"github.com/lacuna-snapshotter/lacuna/internal/fault"
	"github.com/lacuna-snapshotter/lacuna/ondemand"
	"github.com/lacuna-snapshotter/lacuna/ondemand/hold/inflight"
)

const (
	// maxRead is the most bytes in one READ.
	maxRead = 256 << 10
	// replySize is room for its answer with headers.
	replySize = maxRead + 4096

	// maxAhead is the kernel's read-ahead in a blob, in which files lie in the
	// layer's order. EROFS has done its own read-ahead in its files before. With
	// zero the kernel would ask for 4 KiB at a time.
	maxAhead = 32 << 10

	// maxBackground is how many background requests (most of those for read-ahead are)
	// the kernel may have under way. When there are more it holds all others back,
	// also for bytes that are there. So it is the most that INIT can say. A thread
	// waits for each, and a goroutine serves each.
	maxBackground = 1<<16 - 1

	inHeader = 40 // struct fuse_in_header: len, opcode, unique, ...

	opForget      = 2 // enum fuse_opcode
	opRead        = 15
	opInit        = 26
	opInterrupt   = 36
	opBatchForget = 42
)

// InFlight is the shape of the in-flight table that is held beside the device.
// The kernel demands room for a request with maxRead bytes of data, which never
// come; what does come is a header and a name at most.
var InFlight = inflight.Shape{
	Inbox: maxRead + 4096,
	Note:  512, // the session's INIT
	Slot:  512,
	Slots: 4096,
}

// Open mounts a new session at dir, in place of one that has died.
func Open(dir string) (*os.File, error) {
	for unix.Unmount(dir, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW) == nil {
		continue
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	fd, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("open /dev/fuse: %w (the kernel needs CONFIG_FUSE_FS; modprobe fuse)", err)
	}
	options := fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0,allow_other,max_read=%d", fd, maxRead)
	if err := unix.Mount("lacuna", dir, "fuse.lacuna", unix.MS_RDONLY|unix.MS_NODEV|unix.MS_NOSUID|unix.MS_NOEXEC, options); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("mount FUSE at %s: %w", dir, err)
	}
	return os.NewFile(uintptr(fd), "fuse"), nil
}

// session reads the device and answers.
type session struct {
	dev    *os.File
	wakeFD int
	table  *inflight.Table
	fs     *blobFS
	proto  *fuse.ProtocolServer
	log    *slog.Logger

	loop chan struct{} // closed when no more requests are read
	out  sync.Pool
}

// newSession serves the session of a device. Where the in-flight table has a note, it is
// one that an earlier daemon began.
func newSession(dev *os.File, j *inflight.Table, fs *blobFS, logger *slog.Logger) (*session, error) {
	wake, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("eventfd: %w", err)
	}
	s := &session{
		dev: dev, wakeFD: wake, table: j, fs: fs, log: logger,
		loop: make(chan struct{}),
		proto: fuse.NewProtocolServer(fs, &fuse.MountOptions{
			MaxWrite: maxRead, MaxReadAhead: maxAhead, MaxBackground: maxBackground, DisableReadDirPlus: true,
			DisabledCapabilities: fuse.CAP_PASSTHROUGH | fuse.CAP_READDIRPLUS,
			Logger:               log.New(logWriter{logger}, "", 0),
		}),
		out: sync.Pool{New: func() any { b := make([]byte, replySize); return &b }},
	}
	if init := j.Note(); len(init) > 0 {
		// For go-fuse to know what was agreed on; the kernel has had its answer.
		var answer [4096]byte
		s.proto.HandleRequest([][]byte{init}, [][]byte{answer[:]})
	}
	return s, nil
}

// logWriter takes go-fuse's messages.
type logWriter struct{ log *slog.Logger }

func (w logWriter) Write(p []byte) (int, error) {
	w.log.Warn("go-fuse", "message", string(p))
	return len(p), nil
}

// start reads from now on, after what a dead daemon has left.
func (s *session) start() {
	left := s.table.Left()
	pending := map[uint64]bool{}
	for slot, b := range left.Slots {
		m := append([]byte(nil), b...)
		pending[unique(m)] = true
		s.goAnswer(m, slot)
	}
	// One request at most is in the inbox; its own length tells where it ends.
	if m := left.Inbox; len(m) >= inHeader {
		if n := int(binary.NativeEndian.Uint32(m)); n >= inHeader && n <= len(m) && !pending[unique(m)] {
			s.take(append([]byte(nil), m[:n]...))
		}
	}
	s.table.Emptied(len(s.table.Inbox()))
	go s.read()
}

func opcode(m []byte) uint32 { return binary.NativeEndian.Uint32(m[4:]) }
func unique(m []byte) uint64 { return binary.NativeEndian.Uint64(m[8:]) }

// read is the loop.
func (s *session) read() {
	defer close(s.loop)
	pace := ondemand.Pace{Log: s.log, What: "a FUSE request"}
	for {
		n, err := s.next()
		switch {
		case err == nil && n >= inHeader:
			pace.Good()
			fault.Point("request read")
			s.table.Received(n)
			s.take(append([]byte(nil), s.table.Inbox()[:n]...))
			s.table.Emptied(n)
		case err == nil:
			pace.Failed(fmt.Errorf("%d bytes, which is no request", n))
		case errors.Is(err, errWoken):
			return
		case final(err):
			s.fs.requests.Fail(err)
			return
		default:
			pace.Failed(err)
		}
	}
}

// final reports whether all later reads will fail too: the session has ended, since
// its file system was unmounted or it was aborted (fs/fuse/dev.c, fuse_dev_do_read),
// or the call itself is wrong.
func final(err error) bool {
	for _, errno := range []unix.Errno{unix.ENODEV, unix.ECONNABORTED, unix.EBADF, unix.EFAULT, unix.EINVAL} {
		if errors.Is(err, errno) {
			return true
		}
	}
	return false
}

// Alive reports whether a device's session has not ended.
func Alive(dev *os.File) (alive bool) {
	err := descriptor.Use(dev, func(fd int) error {
		p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		_, err := unix.Poll(p, 0)
		alive = p[0].Revents&unix.POLLERR == 0
		return err
	})
	return err == nil && alive
}

var errWoken = errors.New("woken")

// next waits for a request and reads it into the inbox.
func (s *session) next() (n int, err error) {
	for {
		err = s.control(func(fd int) error {
			var err error
			n, err = unix.Read(fd, s.table.Inbox())
			return err
		})
		switch {
		case errors.Is(err, unix.EINTR), errors.Is(err, unix.ENOENT): // ENOENT: it was interrupted
			continue
		case !errors.Is(err, unix.EAGAIN):
			return n, err
		}
		var woken bool
		err = s.control(func(fd int) error {
			p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}, {Fd: int32(s.wakeFD), Events: unix.POLLIN}}
			_, err := unix.Poll(p, -1)
			woken = p[1].Revents != 0
			return err
		})
		if woken {
			return 0, errWoken
		}
		if err != nil && !errors.Is(err, unix.EINTR) {
			return 0, err
		}
	}
}

func (s *session) control(f func(fd int) error) error { return descriptor.Use(s.dev, f) }

// take starts the answer to a request.
func (s *session) take(m []byte) {
	switch opcode(m) {
	case opForget, opBatchForget:
		return // nodes are numbered by name: nothing to forget, and no answer
	case opInit:
		if err := s.table.SetNote(m); err != nil {
			s.log.Error("the FUSE session cannot be adopted when this daemon dies: its INIT is not recorded", "error", err)
		}
		s.answer(m) // before all others
	case opInterrupt:
		s.goAnswer(m, -1)
	default:
		slot, err := s.table.Put(m)
		if err != nil {
			s.log.Error("a FUSE request fails with EIO", "opcode", opcode(m), "error", err)
			var out [outHeader]byte
			refuse(out[:], m)
			s.write(m, out[:])
			return
		}
		s.goAnswer(m, slot)
	}
}

func (s *session) goAnswer(m []byte, slot int) {
	s.fs.requests.Start(func() {
		if s.answer(m) {
			fault.Point("after the answer")
			s.table.Clear(slot)
		}
	})
}

// answer has go-fuse handle a request and writes what it says. It reports whether
// the request is done with.
func (s *session) answer(m []byte) bool {
	out, _ := s.out.Get().(*[]byte)
	defer s.out.Put(out)
	n, status := s.proto.HandleRequest([][]byte{m}, [][]byte{*out})
	if !status.Ok() {
		// go-fuse could not even make an answer.
		n = outHeader
		refuse(*out, m)
	}
	if n == 0 {
		return true
	}
	if r := s.fs.requests; r.Leaving() && (opcode(m) == opRead || r.Early()) && binary.NativeEndian.Uint32((*out)[4:]) != 0 {
		return false
	}
	s.write(m, (*out)[:n])
	return true
}

// outHeader is the size of struct fuse_out_header.
const outHeader = 16

// refuse makes an answer of EIO.
func refuse(out, m []byte) {
	ne := binary.NativeEndian
	ne.PutUint32(out, outHeader)
	ne.PutUint32(out[4:], ^uint32(unix.EIO)+1) // negative
	ne.PutUint64(out[8:], unique(m))
}

// write answers a request.
func (s *session) write(m, answer []byte) {
	fault.Point("before the answer")
	err := s.control(func(fd int) error {
		_, err := unix.Write(fd, answer)
		return err
	})
	// ENOENT: answered before, or the reader was killed.
	if err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ENODEV) {
		s.log.Error("a FUSE request could not be answered", "opcode", opcode(m), "error", err)
	}
}

// stop ends the loop.
func (s *session) stop() {
	_, _ = unix.Write(s.wakeFD, []byte{1, 0, 0, 0, 0, 0, 0, 0}) // a full counter wakes as well
	<-s.loop
}

func (s *session) close() error {
	return errors.Join(unix.Close(s.wakeFD), s.dev.Close(), s.table.Close())
}
