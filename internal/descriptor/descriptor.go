// Package descriptor uses files by their descriptor numbers.
package descriptor

import (
	"errors"
	"syscall"
)

// Use calls f with a file's descriptor, which is not closed during the call and stays
// non-blocking: os.File.Fd would make it blocking, also for other processes that share
// the open file description.
func Use(file syscall.Conn, f func(fd int) error) error {
	conn, err := file.SyscallConn()
	if err != nil {
		return err
	}
	var inner error
	return errors.Join(conn.Control(func(fd uintptr) { inner = f(int(fd)) }), inner)
}
