package fanotify

import (
	"encoding/binary"
	"slices"

	"github.com/lacuna-snapshotter/lacuna/ondemand/journal"
)

// Journal is the shape of the journal that a keeper holds beside the group. The
// kernel matches answers by the number of the event's descriptor alone
// (fanotify_user.c, process_access_response), so a successor can give them.
var Journal = journal.Shape{
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

// left is an event of a dead daemon.
type left struct {
	event
	file inode // zero where the daemon died before it knew
	slot int
}

// leftovers finds what a dead daemon has not answered, by number, and perhaps some
// that it has: a second answer does no harm once all of a number are filled. What
// was in the inbox only has a slot afterwards, since the next read goes there, and
// we may die as well.
func leftovers(j *journal.Journal) (list map[int32][]left, err error) {
	list = map[int32][]left{}
	ne := binary.NativeEndian
	found := j.Left()
	for i, b := range found.Slots {
		if len(b) != slotSize {
			continue
		}
		l := left{slot: i, file: inode{ne.Uint64(b[4:]), ne.Uint64(b[12:])}}
		l.fd, l.off, l.count = int32(ne.Uint32(b)), int64(ne.Uint64(b[20:])), int64(ne.Uint64(b[28:]))
		list[l.fd] = append(list[l.fd], l)
	}
	// Where the length is not noted, events of earlier reads may stand in the
	// inbox too. They have been answered; taking them costs a refused answer.
	events, err := decode(found.Inbox)
	if !found.Noted {
		err = nil
	}
	for _, e := range events {
		known := slices.ContainsFunc(list[e.fd], func(l left) bool { return l.off == e.off && l.count == e.count })
		if e.fd >= 0 && !known {
			list[e.fd] = append(list[e.fd], left{event: e, slot: j.Put(encodeSlot(e, inode{}))})
		}
	}
	j.Emptied(len(j.Inbox()))
	return list, err
}
