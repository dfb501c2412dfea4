package cachefiles

import (
	"encoding/binary"
	"fmt"
	"strings"
)

// Dialect is a version of the protocol.
type Dialect int

// The dialects. Only the first OPEN tells which one a kernel speaks.
const (
	Unknown  Dialect = iota
	Mainline         // Linux 5.19 and later
	V5               // version 5 of the series, which was never merged
)

func (d Dialect) String() string { return [...]string{"unknown", "mainline", "v5"}[d] }

// opcodes, include/uapi/linux/cachefiles.h: enum cachefiles_opcode
const (
	opOpen  = 0
	opClose = 1
	opRead  = 2
)

const (
	headerSize   = 12 // msg_id, opcode, len; mainline has object_id behind it
	mainlineData = 16
	v5Data       = 12
	openFixed    = 16 // of the payload: two lengths, descriptor, flags

	// maxMessage is CACHEFILES_MSG_MAX_SIZE; v5's is 512.
	maxMessage = 1024

	// v5WantSize is the flag of an OPEN that is to be answered with a size.
	v5WantSize = 1
)

// message is a request of the kernel.
type message struct {
	id     uint32
	op     uint32
	object uint32 // the object ID; in v5 the descriptor's number, in an OPEN too

	// OPEN
	fd             int
	volume, cookie string
	wantSize       bool

	// READ, in bytes
	off, n int64
}

func (m message) String() string {
	switch m.op {
	case opOpen:
		return fmt.Sprintf("OPEN %d of %q %q", m.id, m.volume, m.cookie)
	case opClose:
		return fmt.Sprintf("CLOSE %d of object %d", m.id, m.object)
	}
	return fmt.Sprintf("READ %d of object %d [%d,+%d)", m.id, m.object, m.off, m.n)
}

// decode reads one message of a known dialect.
func decode(b []byte, d Dialect) (message, error) {
	ne := binary.NativeEndian
	if len(b) < headerSize+4 || len(b) > maxMessage {
		return message{}, fmt.Errorf("cachefiles message of %d bytes", len(b))
	}
	m := message{id: ne.Uint32(b), op: ne.Uint32(b[4:])}
	if n := ne.Uint32(b[8:]); int64(n) != int64(len(b)) {
		return message{}, fmt.Errorf("cachefiles message of %d bytes says that it has %d", len(b), n)
	}
	payload := b[mainlineData:]
	if d == V5 {
		payload = b[v5Data:]
	} else {
		m.object = ne.Uint32(b[12:])
	}
	short := fmt.Errorf("cachefiles message of %d bytes is too short for opcode %d (%s)", len(b), m.op, d)
	switch m.op {
	case opOpen:
		if len(payload) < openFixed {
			return message{}, short
		}
		nv, nc := int64(ne.Uint32(payload)), int64(ne.Uint32(payload[4:]))
		m.fd = int(int32(ne.Uint32(payload[8:])))
		m.wantSize = d != V5 || ne.Uint32(payload[12:])&v5WantSize != 0
		keys := payload[openFixed:]
		if nv+nc != int64(len(keys)) {
			return message{}, fmt.Errorf("OPEN with keys of %d and %d bytes in %d", nv, nc, len(keys))
		}
		m.volume = strings.TrimSuffix(string(keys[:nv]), "\x00")
		m.cookie = string(keys[nv:])
		if d == V5 {
			m.object = uint32(m.fd)
		}
	case opClose:
		if d == V5 {
			m.object = ne.Uint32(payload)
		}
	case opRead:
		if len(payload) < 16 || d == V5 && len(payload) < 20 {
			return message{}, short
		}
		m.off, m.n = int64(ne.Uint64(payload)), int64(ne.Uint64(payload[8:]))
		if d == V5 {
			m.object = ne.Uint32(payload[16:])
		}
		if m.off < 0 || m.n < 0 || m.off+m.n < 0 {
			return message{}, fmt.Errorf("READ [%d,+%d)", m.off, m.n)
		}
	}
	return m, nil // the caller deals with other opcodes
}

// detect tells the dialect from a message, Unknown where it does not show. An
// OPEN's lengths add up in one layout; a READ's length differs.
func detect(b []byte) Dialect {
	if len(b) < headerSize {
		return Unknown
	}
	switch binary.NativeEndian.Uint32(b[4:]) {
	case opOpen:
		for _, d := range []Dialect{Mainline, V5} {
			if m, err := decode(b, d); err == nil && m.fd >= 0 && strings.HasPrefix(m.volume, volumePrefix) {
				return d
			}
		}
	case opRead:
		switch len(b) {
		case mainlineData + 16:
			return Mainline
		case v5Data + 24: // with the structure's padding
			return V5
		}
	}
	return Unknown
}

// volumePrefix begins the volume key of every EROFS mount. In v5 it is all of
// the key; mainline has a comma and the domain, or the fsid, behind it
// (fs/erofs/fscache.c, erofs_fscache_register_volume).
const volumePrefix = "erofs"

// domain is what a volume key says of the mount's domain: nothing in v5.
func domain(volume string) string {
	_, name, _ := strings.Cut(volume, ",")
	return name
}

// openReply answers an OPEN with the object's size in bytes or, negative, an
// errno.
func openReply(d Dialect, m message, size int64) string {
	switch {
	case d != V5:
		return fmt.Sprintf("copen %d,%d", m.id, size)
	case size < 0:
		// v5 has no error here, but fails an OPEN whose size is zero; it
		// would not answer one whose size is no number.
		return fmt.Sprintf("cinit %d,0", m.id)
	case m.wantSize:
		return fmt.Sprintf("cinit %d,%d", m.id, size)
	}
	return fmt.Sprintf("cinit %d", m.id)
}

// readReply is what completes a READ in v5; mainline has an ioctl.
func readReply(m message) string { return fmt.Sprintf("cread %d", m.id) }
