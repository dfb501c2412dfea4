package ondemand

import (
	"errors"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/lacuna-snapshotter/lacuna/internal/durable"
)

// disk is what a fileBacking asks of the file system. Tests have one that fails,
// and that loses what was not synced.
type disk interface {
	// open opens a file for reading and writing. It makes a missing one.
	open(path string) (file, error)
	// read returns a file's bytes, at most so many.
	read(path string, most int64) ([]byte, error)
	rename(from, to string) error
	remove(path string) error
	// syncDir makes the names in the directory of path survive a loss of power.
	syncDir(path string) error
}

// file is an open file of a disk.
type file interface {
	io.ReaderAt
	io.WriterAt
	Truncate(size int64) error
	Sync() error
	Close() error
	size() (int64, error)
	identity() (identity, error)
	// writeError returns what has failed of the kernel's own writing of the
	// file's pages since it was opened, or since it, or Sync, told last. It does
	// no I/O.
	writeError() error
}

// hostDisk is the kernel's.
type hostDisk struct{}

func (hostDisk) open(path string) (file, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	return hostFile{f}, nil
}

func (hostDisk) read(path string, most int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, most))
}

func (hostDisk) rename(from, to string) error { return os.Rename(from, to) }

func (hostDisk) remove(path string) error { return os.Remove(path) }

func (hostDisk) syncDir(path string) error { return durable.SyncDir(filepath.Dir(path)) }

type hostFile struct{ *os.File }

func (f hostFile) size() (int64, error) {
	info, err := f.Stat()
	if err != nil {
		return 0, err
	}
	return info.Size(), nil
}

func (f hostFile) identity() (identity, error) { return fileIdentity(f.File) }

// writeError waits for the pages of a range that has none, and so gets the
// file's error at once.
func (f hostFile) writeError() error {
	conn, err := f.SyscallConn()
	if err != nil {
		return err
	}
	// Far behind the end, and still what a 32-bit kernel's page cache can have.
	const behind = 1<<43 - 1<<16
	var syncErr error
	err = conn.Control(func(fd uintptr) {
		syncErr = unix.SyncFileRange(int(fd), behind, 1, unix.SYNC_FILE_RANGE_WAIT_BEFORE)
	})
	if err = errors.Join(err, syncErr); err != nil {
		return &os.PathError{Op: "write back", Path: f.Name(), Err: err}
	}
	return nil
}
