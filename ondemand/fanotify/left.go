package fanotify

import (
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"os"

	"golang.org/x/sys/unix"

	"github.com/lacuna-snapshotter/lacuna/ondemand/hold/inflight"
)

// InFlight is the shape of the in-flight table that is held beside the group. The
// kernel matches answers by the number of the event's descriptor alone
// (fanotify_user.c, process_access_response), so the next daemon can give them.
var InFlight = inflight.Shape{
	Inbox: 64 << 10,
	Slot:  slotSize,
	Slots: 8192, // far more than readers that wait at once
}

// A slot is the event's descriptor and, with 8 bytes each, its file's device and
// inode, its offset and its count.
const slotSize = 4 + 4*8

func encodeSlot(e event, id inode) []byte {
	ne := binary.NativeEndian
	b := ne.AppendUint32(make([]byte, 0, slotSize), uint32(e.fd))
	for _, v := range []uint64{id.dev, id.ino, uint64(e.off), uint64(e.count)} {
		b = ne.AppendUint64(b, v)
	}
	return b
}

// leftovers finds what a dead daemon has not answered, by number, and perhaps some
// that it has, or twice. What was in the inbox only has a slot afterwards: the next
// read overwrites the inbox, and this daemon may die too.
func leftovers(j *inflight.Table, log *slog.Logger) (numbers map[int32]*number, err error) {
	numbers = map[int32]*number{}
	of := func(fd int32) *number {
		if numbers[fd] == nil {
			numbers[fd] = newNumber(fd)
		}
		return numbers[fd]
	}
	ne := binary.NativeEndian
	found := j.Left()
	for i, b := range found.Slots {
		if len(b) != slotSize {
			continue
		}
		l := left{slot: i, file: inode{ne.Uint64(b[4:]), ne.Uint64(b[12:])}}
		l.fd, l.off, l.count = int32(ne.Uint32(b)), int64(ne.Uint64(b[20:])), int64(ne.Uint64(b[28:]))
		n := of(l.fd)
		n.events = append(n.events, l)
	}
	// Events in the inbox may have a slot already; where the length is not noted,
	// events of earlier reads may stand in it too, which have been answered. Taking
	// either costs a refused answer. They cannot be told from events with the same
	// number and range, which must not be lost.
	events, err := decode(found.Inbox)
	if err != nil && found.Noted {
		log.Error("the inbox of the last daemon's in-flight table cannot be decoded", "error", err)
	}
	for _, e := range events {
		if e.fd < 0 {
			continue
		}
		n := of(e.fd)
		slot, err := j.Put(encodeSlot(e, inode{}))
		if err != nil {
			return nil, err // it stays in the inbox
		}
		n.events = append(n.events, left{event: e, slot: slot})
	}
	j.Emptied(len(j.Inbox()))
	return numbers, nil
}

// Refuse denies all events that were read from a group and not answered, when the
// in-flight table is lost or cannot be read. Their numbers are unknown, but there are
// few enough to try them all. It comes before Serve.
func Refuse(group *os.File) error {
	limit := unix.Rlimit{Max: maxNumber}
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return os.NewSyscallError("getrlimit", err)
	}
	for fd := range int32(max(maxNumber, min(limit.Max, 16*maxNumber))) {
		for { // a number may have several
			_, err := group.Write(answer(fd, unix.EIO))
			if errors.Is(err, unix.ENOENT) {
				break
			}
			if err != nil {
				return fmt.Errorf("deny what a dead daemon has read: %w", err)
			}
		}
	}
	return nil
}

// maxNumber is more than a descriptor's number can be where the administrator has not
// raised the limit (NR_OPEN, include/uapi/linux/fs.h has 1024 times 1024).
const maxNumber = 1 << 20
