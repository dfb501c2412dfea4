package index

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/lacuna-snapshotter/lacuna/internal/durable"
)

// Names of files that are being written begin with this. The process that writes one has
// it locked, so that clean can tell it from what dead processes left.
const temporary = ".making-"

// newTemp makes a locked temporary file. Closing it frees the lock.
func newTemp(dir string) (*os.File, error) {
	for {
		f, err := os.CreateTemp(dir, temporary+"*")
		if err != nil {
			return nil, err
		}
		var st unix.Stat_t
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			err = unix.Fstat(int(f.Fd()), &st)
		}
		switch {
		case err == nil && st.Nlink > 0:
			return f, nil
		case err != nil && !errors.Is(err, unix.EWOULDBLOCK):
			return nil, errors.Join(err, f.Close(), os.Remove(f.Name()))
		}
		f.Close() // clean had it locked first, and removes it
	}
}

// clean removes temporary files of processes that died.
func clean(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), temporary) || !e.Type().IsRegular() {
			continue
		}
		path := filepath.Join(dir, e.Name())
		f, err := os.Open(path)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		if unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil {
			err = os.Remove(path)
		}
		f.Close()
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return nil
}

// writeFile writes parts to path so that it appears whole and durable or not
// at all.
func writeFile(path string, head []byte, rest io.Reader) (err error) {
	f, err := newTemp(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer f.Close() // last: while it is locked, clean does not take it for a dead process's
	defer func() {
		if err != nil {
			os.Remove(f.Name())
		}
	}()
	if _, err := f.Write(head); err != nil {
		return err
	}
	if _, err := io.Copy(f, rest); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	return durable.SyncDir(filepath.Dir(path))
}
