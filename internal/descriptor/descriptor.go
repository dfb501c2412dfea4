// Package descriptor uses files by their numbers.
package descriptor

import (
	"errors"
	"syscall"
)

// Use calls f with a file's descriptor, which is not closed meanwhile and stays in
// the mode it has: os.File.Fd would make it blocking, also for the processes that
// share its description.
func Use(file syscall.Conn, f func(fd int) error) error {
	conn, err := file.SyscallConn()
	if err != nil {
		return err
	}
	var inner error
	return errors.Join(conn.Control(func(fd uintptr) { inner = f(int(fd)) }), inner)
}
