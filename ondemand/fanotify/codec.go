package fanotify

import (
	"encoding/binary"
	"fmt"

	"golang.org/x/sys/unix"
)

// From include/uapi/linux/fanotify.h.
const (
	metadataVersion = 3  // FANOTIFY_METADATA_VERSION
	metadataSize    = 24 // struct fanotify_event_metadata
	infoHeaderSize  = 4  // struct fanotify_event_info_header
	rangeSize       = 24 // struct fanotify_event_info_range
)

// event is one pre-content request.
type event struct {
	mask  uint64
	fd    int32 // a descriptor of the file, which the server closes; the answer names it
	pid   int32
	off   int64
	count int64 // zero where the kernel named no range
}

// decode splits what one read returned into events. After an error the events
// before it are good.
func decode(b []byte) ([]event, error) {
	var list []event
	for len(b) > 0 {
		if len(b) < metadataSize {
			return list, fmt.Errorf("fanotify event of %d bytes", len(b))
		}
		n := binary.NativeEndian.Uint32(b)
		head := binary.NativeEndian.Uint16(b[6:])
		if b[4] != metadataVersion {
			return list, fmt.Errorf("fanotify metadata version %d, expected %d", b[4], metadataVersion)
		}
		if n < metadataSize || int64(n) > int64(len(b)) || head < metadataSize || uint32(head) > n {
			return list, fmt.Errorf("fanotify event of %d bytes, metadata of %d, in %d", n, head, len(b))
		}
		e := event{
			mask: binary.NativeEndian.Uint64(b[8:]),
			fd:   int32(binary.NativeEndian.Uint32(b[16:])),
			pid:  int32(binary.NativeEndian.Uint32(b[20:])),
		}
		if err := e.decodeInfo(b[head:n]); err != nil {
			return list, err
		}
		list = append(list, e)
		b = b[n:]
	}
	return list, nil
}

// decodeInfo looks for the range among an event's info records.
func (e *event) decodeInfo(b []byte) error {
	for len(b) > 0 {
		if len(b) < infoHeaderSize {
			return fmt.Errorf("fanotify info record of %d bytes", len(b))
		}
		n := int(binary.NativeEndian.Uint16(b[2:]))
		if n < infoHeaderSize || n > len(b) {
			return fmt.Errorf("fanotify info record of %d bytes in %d", n, len(b))
		}
		if b[0] == unix.FAN_EVENT_INFO_TYPE_RANGE {
			if n < rangeSize {
				return fmt.Errorf("fanotify range record of %d bytes", n)
			}
			e.off = int64(binary.NativeEndian.Uint64(b[8:]))
			e.count = int64(binary.NativeEndian.Uint64(b[16:]))
			if e.off < 0 || e.count < 0 {
				return fmt.Errorf("fanotify range of %d bytes at %d", e.count, e.off)
			}
		}
		b = b[n:]
	}
	return nil
}

// errnoShift is FAN_ERRNO_SHIFT: the errno of a denial, in the response.
const errnoShift = 24

// answer encodes struct fanotify_response. A zero errno allows.
func answer(fd int32, errno unix.Errno) []byte {
	response := uint32(unix.FAN_ALLOW)
	if errno != 0 {
		response = unix.FAN_DENY | uint32(errno)<<errnoShift
	}
	b := binary.NativeEndian.AppendUint32(nil, uint32(fd))
	return binary.NativeEndian.AppendUint32(b, response)
}
