package hold

import (
	"errors"
	"net"
	"os"
	"strings"

	"github.com/coreos/go-systemd/v22/activation"
	"golang.org/x/sys/unix"
)

// Systemd is the service manager's descriptor store (sd_notify(3), FDSTORE=1):
// another holder, which only dies with the machine. It needs
// FileDescriptorStoreMax= in the daemon's unit.
type Systemd struct{ conn *net.UnixConn }

// OpenSystemd connects to the service manager that started this process, and
// returns what its store holds, by label. Without one both are nil.
func OpenSystemd() (*Systemd, map[string]*os.File, error) {
	socket := os.Getenv("NOTIFY_SOCKET")
	if socket == "" {
		return nil, nil, nil
	}
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: socket, Net: "unixgram"})
	if err != nil {
		return nil, nil, err
	}
	var found map[string]*os.File
	for _, f := range activation.Files(true) {
		if found == nil {
			found = map[string]*os.File{}
		}
		found[f.Name()] = f
	}
	return &Systemd{conn}, found, nil
}

// maxName is the longest name that the store takes, FDNAME_MAX.
const maxName = 255

// errName says that the store cannot hold something: a colon separates names.
var errName = errors.New("the service manager's store does not take the label")

func storable(label string) bool { return len(label) <= maxName && !strings.Contains(label, ":") }

// Keep has the store hold a duplicate of a descriptor, in place of what it held
// under the label.
func (s *Systemd) Keep(label string, fd int) error {
	if !storable(label) {
		return errName
	}
	if err := s.Drop(label); err != nil {
		return err
	}
	raw, err := s.conn.SyscallConn()
	if err != nil {
		return err
	}
	// Not by WriteMsgUnix, which refuses connected sockets. Without FDPOLL=0 a
	// device that reports an error would be dropped.
	var sendErr error
	err = raw.Write(func(conn uintptr) bool {
		sendErr = unix.Sendmsg(int(conn), []byte("FDSTORE=1\nFDPOLL=0\nFDNAME="+label), unix.UnixRights(fd), nil, unix.MSG_NOSIGNAL)
		return !errors.Is(sendErr, unix.EAGAIN)
	})
	return errors.Join(err, sendErr)
}

// Drop has the store close what it holds under a label.
func (s *Systemd) Drop(label string) error {
	if !storable(label) {
		return nil
	}
	_, err := s.conn.Write([]byte("FDSTOREREMOVE=1\nFDNAME=" + label))
	return err
}
