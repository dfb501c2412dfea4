package hold

import (
	"errors"
	"net"
	"os"
	"slices"
	"strings"

	"github.com/coreos/go-systemd/v22/activation"
	"golang.org/x/sys/unix"
)

// serviceManager is systemd's descriptor store (sd_notify(3), FDSTORE=1), a holder
// that only ends with the machine. It needs FileDescriptorStoreMax= in the daemon's
// unit.
type serviceManager struct {
	conn   *net.UnixConn
	labels []string // that it was given, also by earlier daemons
}

var _ holder = (*serviceManager)(nil)

// openManager connects to the service manager that started this process, nil where
// none did.
func openManager() (*serviceManager, error) {
	socket := os.Getenv("NOTIFY_SOCKET")
	if socket == "" {
		return nil, nil
	}
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: socket, Net: "unixgram"})
	if err != nil {
		return nil, err
	}
	return &serviceManager{conn: conn}, nil
}

// adopt returns the descriptors that this process was started with. A second call
// returns nothing.
func (m *serviceManager) adopt() (list []held, _ error) {
	for _, f := range activation.Files(true) {
		list = append(list, held{f.Name(), f})
		m.note(f.Name())
	}
	return list, nil
}

func (m *serviceManager) note(label string) {
	if !slices.Contains(m.labels, label) {
		m.labels = append(m.labels, label)
	}
}

// maxName is the longest name that the store takes, FDNAME_MAX.
const maxName = 255

// errName says that the store cannot hold a label: a colon separates names.
var errName = errors.New("the service manager's store does not take the label")

func storable(label string) bool { return len(label) <= maxName && !strings.Contains(label, ":") }

func (m *serviceManager) hold(label string, fd int) error {
	if !storable(label) {
		return errName
	}
	if err := m.release(label); err != nil { // the store would hold both
		return err
	}
	raw, err := m.conn.SyscallConn()
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
	m.note(label)
	return errors.Join(err, sendErr)
}

func (m *serviceManager) release(label string) error {
	if !storable(label) {
		return nil
	}
	_, err := m.conn.Write([]byte("FDSTOREREMOVE=1\nFDNAME=" + label))
	if err == nil {
		m.labels = slices.DeleteFunc(m.labels, func(l string) bool { return l == label })
	}
	return err
}

func (m *serviceManager) leave() error { return m.conn.Close() }

func (m *serviceManager) end() error {
	var errs []error
	for _, label := range slices.Clone(m.labels) {
		errs = append(errs, m.release(label))
	}
	return errors.Join(append(errs, m.conn.Close())...)
}
