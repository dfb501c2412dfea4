package fanotify

import (
	"bytes"
	"encoding/binary"
	"log/slog"
	"os"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/lacuna-snapshotter/lacuna/internal/descriptor"
	"github.com/lacuna-snapshotter/lacuna/internal/hostcheck"
	"github.com/lacuna-snapshotter/lacuna/internal/kernel"
	"github.com/lacuna-snapshotter/lacuna/ondemand"
	"github.com/lacuna-snapshotter/lacuna/ondemand/hold/inflight"
	"github.com/lacuna-snapshotter/lacuna/ondemand/transporttest"
)

func TestConformance(t *testing.T) {
	hostcheck.Root(t)
	hostcheck.Feature(t, kernel.PreContent)
	if err := Probe(t.TempDir()); err != nil {
		hostcheck.Missing(t, "a file system with pre-content events: "+err.Error())
	}
	var release func()
	transporttest.Run(t, transporttest.Kind{
		New: func(t *testing.T, _ string, _ *ondemand.Engine) ondemand.Transport {
			group, err := NewGroup()
			if err != nil {
				t.Fatal(err)
			}
			release = hold(t, group)
			j, err := inflight.New(InFlight)
			if err != nil {
				t.Fatal(err)
			}
			s, err := Serve(group, j, slog.New(slog.NewTextHandler(t.Output(), nil)))
			if err != nil {
				t.Fatal(err)
			}
			s.Recover()
			return s
		},
		Die:      func() { release() },
		Survives: true,
	})
}

// hold keeps another descriptor of the group until the test is over, as a
// keeper does: without one the kernel lets reads through once the server closes.
func hold(t *testing.T, group *os.File) (release func()) {
	t.Helper()
	var fd int
	err := descriptor.Use(group, func(g int) (err error) {
		fd, err = unix.FcntlInt(uintptr(g), unix.F_DUPFD_CLOEXEC, 0)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	release = sync.OnceFunc(func() { unix.Close(fd) })
	t.Cleanup(release)
	return release
}

// encode makes the bytes that the kernel would send.
func encode(e event, withRange bool) []byte {
	var info []byte
	if withRange {
		info = append(info, unix.FAN_EVENT_INFO_TYPE_RANGE, 0)
		info = binary.NativeEndian.AppendUint16(info, rangeSize)
		info = binary.NativeEndian.AppendUint32(info, 0)
		info = binary.NativeEndian.AppendUint64(info, uint64(e.off))
		info = binary.NativeEndian.AppendUint64(info, uint64(e.count))
	}
	b := binary.NativeEndian.AppendUint32(nil, uint32(metadataSize+len(info)))
	b = append(b, metadataVersion, 0)
	b = binary.NativeEndian.AppendUint16(b, metadataSize)
	b = binary.NativeEndian.AppendUint64(b, e.mask)
	b = binary.NativeEndian.AppendUint32(b, uint32(e.fd))
	b = binary.NativeEndian.AppendUint32(b, uint32(e.pid))
	return append(b, info...)
}

func TestDecode(t *testing.T) {
	with := event{mask: unix.FAN_PRE_ACCESS, fd: 7, pid: 99, off: 1 << 33, count: 131072}
	without := event{mask: unix.FAN_PRE_ACCESS, fd: 8, pid: 1}
	overflow := event{mask: unix.FAN_Q_OVERFLOW, fd: -1}
	b := append(append(encode(with, true), encode(without, false)...), encode(overflow, false)...)
	list, err := decode(b)
	if err != nil || len(list) != 3 || list[0] != with || list[1] != without || list[2] != overflow {
		t.Fatal(list, err)
	}
	for name, damage := range map[string]func([]byte){
		"version":   func(b []byte) { b[4] = 2 },
		"length":    func(b []byte) { b[0] = 200 },
		"short":     func(b []byte) { b[0] = 3 },
		"metadata":  func(b []byte) { b[6] = 255 },
		"info size": func(b []byte) { b[metadataSize+2] = 0 },
		"range":     func(b []byte) { b[metadataSize+15] = 0x80 },
	} {
		bad := encode(with, true)
		damage(bad)
		if _, err := decode(bad); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	if list, err := decode(b[:len(b)-1]); err == nil || len(list) != 2 {
		t.Errorf("cut: %v %v", list, err)
	}
}

func TestAnswer(t *testing.T) {
	for errno, want := range map[unix.Errno]uint32{0: 1, unix.EIO: 2 | 5<<24} {
		b := answer(12, errno)
		if binary.NativeEndian.Uint32(b) != 12 || binary.NativeEndian.Uint32(b[4:]) != want {
			t.Errorf("errno %d: %x", errno, b)
		}
	}
}

func FuzzDecode(f *testing.F) {
	f.Add(encode(event{fd: 3, off: 4096, count: 8192}, true))
	f.Add(bytes.Repeat(encode(event{fd: 3}, false), 3))
	f.Fuzz(func(t *testing.T, b []byte) {
		list, err := decode(b)
		if err != nil {
			return
		}
		var again []byte
		for _, e := range list {
			again = append(again, encode(e, true)...)
		}
		second, err := decode(again)
		if err != nil || len(second) != len(list) {
			t.Fatalf("%v then %v: %v", list, second, err)
		}
		for i := range list {
			if list[i] != second[i] {
				t.Fatalf("%v then %v", list[i], second[i])
			}
		}
	})
}

func TestDriver(t *testing.T) {
	needKernel(t)
	transporttest.RunDriver(t, func(dir string) ondemand.Driver { return Driver{Dir: dir} })
}

func TestUnheld(t *testing.T) {
	needKernel(t)
	transporttest.RunUnheld(t, func(dir string) ondemand.Driver { return Driver{Dir: dir} })
}
