package hold

import (
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// A packet between daemon and keeper is a command, its label, and at most one
// descriptor. Each command is answered by one packet, except cmdAdopt, which is
// answered by one packet for each descriptor and one at the end.
const (
	cmdHold    = 'k' // label and descriptor
	cmdRelease = 'd' // label
	cmdAdopt   = 't'
	cmdEnd     = 'e' // the keeper ends

	ansHeld = 'h' // label and descriptor
	ansDone = 'o'
	ansFull = 'f' // no room for more

	maxLabel = 1 << 10
	maxHeld  = 1 << 16

	patience = 5 * time.Second
)

var errLabel = fmt.Errorf("the label is longer than %d bytes", maxLabel)

// packet is one message. The file, if any, is owned by the receiver.
type packet struct {
	kind  byte
	label string
	file  *os.File
}

func send(conn *net.UnixConn, kind byte, label string, fd int) error {
	if len(label) > maxLabel {
		return errLabel
	}
	var rights []byte
	if fd >= 0 {
		rights = unix.UnixRights(fd)
	}
	if err := conn.SetWriteDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	_, _, err := conn.WriteMsgUnix(append([]byte{kind}, label...), rights, nil)
	return err
}

// receive reads a packet. The net package asks for close-on-exec descriptors.
func receive(conn *net.UnixConn) (p packet, err error) {
	b, oob := make([]byte, 1+maxLabel), make([]byte, unix.CmsgSpace(4))
	n, oobn, flags, _, err := conn.ReadMsgUnix(b, oob)
	if err != nil {
		return p, err
	}
	if n == 0 {
		return p, net.ErrClosed // the other end has gone
	}
	if oobn > 0 {
		messages, err := unix.ParseSocketControlMessage(oob[:oobn])
		if err != nil {
			return p, err
		}
		for _, m := range messages {
			fds, err := unix.ParseUnixRights(&m)
			if err != nil {
				return p, err
			}
			for _, fd := range fds {
				p.file = os.NewFile(uintptr(fd), "held")
			}
		}
	}
	if flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0 {
		p.close()
		return p, errors.New("packet is cut off")
	}
	p.kind, p.label = b[0], string(b[1:n])
	return p, nil
}

func (p packet) close() {
	if p.file != nil {
		p.file.Close()
	}
}
