package fusefile

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/lacuna-snapshotter/lacuna/erofs"
	"github.com/lacuna-snapshotter/lacuna/ondemand"
	"github.com/lacuna-snapshotter/lacuna/ondemand/journal"
)

// Server is the transport.
type Server struct {
	dir     string // where the session is mounted
	fs      *blobFS
	session *session
	cancel  context.CancelFunc
	loop    bool // always mount through loop devices

	stopping sync.Once
}

// Serve answers the requests of a session that is mounted at dir. It owns the
// device and the journal from now on, until Close.
func Serve(dir string, dev *os.File, j *journal.Journal, log *slog.Logger) (*Server, error) {
	ctx, cancel := context.WithCancel(context.Background())
	s := &Server{dir: dir, fs: newFS(ctx, log), cancel: cancel}
	var err error
	if s.session, err = newSession(dev, j, s.fs, log); err != nil {
		cancel()
		return nil, errors.Join(err, dev.Close())
	}
	s.session.start()
	return s, nil
}

// Name implements ondemand.Transport.
func (s *Server) Name() string { return "fuse" }

// Store implements ondemand.Transport: blobs are files.
func (s *Server) Store(ondemand.Key, int64, int64) (ondemand.Store, error) { return nil, nil }

// Serves implements ondemand.Transport: a mount goes through FUSE for good.
func (s *Server) Serves(*ondemand.Blob) bool { return true }

// Attach implements ondemand.Transport. Complete blobs have a file too: their
// mount may be of a time when they were not.
func (s *Server) Attach(b *ondemand.Blob, _ string) error { return s.fs.add(name(b), b) }

func name(b *ondemand.Blob) string { return b.Key().Volume + "-" + b.Key().Cookie }

// Mount implements ondemand.Transport.
func (s *Server) Mount(b *ondemand.Blob, bootstrap, target string) error {
	device := b.Path()
	if !b.Complete() {
		device = filepath.Join(s.dir, name(b))
		// In another process: see the package's comment.
		if out, err := exec.Command("head", "-c0", device).CombinedOutput(); err != nil { //nolint:noctx // it asks us
			return fmt.Errorf("open %s: %w %s", device, err, out)
		}
	}
	if !s.loop {
		err := erofs.Mount(bootstrap, device, target)
		if !errors.Is(err, unix.ENOTBLK) {
			return err
		}
	}
	return erofs.MountLoop(bootstrap, device, target)
}

// Release implements ondemand.Transport: the mount is served on, from the cache
// file.
func (s *Server) Release(b *ondemand.Blob) error {
	if !b.Complete() {
		return errors.New("release of " + b.Key().String() + ": it has holes")
	}
	return nil
}

// Detach implements ondemand.Transport.
func (s *Server) Detach(b *ondemand.Blob) error { return s.fs.remove(name(b)) }

// Remove implements ondemand.Transport: the kernel keeps nothing.
func (s *Server) Remove(ondemand.Key) error { return nil }

// Recover implements ondemand.Transport.
func (s *Server) Recover() { close(s.fs.recovered) }

// Drain implements ondemand.Transport.
func (s *Server) Drain() {
	s.fs.leaving.Store(true)
	s.stopping.Do(s.session.stop)
	ondemand.WaitDrained(&s.session.work)
}

// Close implements ondemand.Transport. Fills under way are ended. Where no blob
// is attached any more the session is unmounted.
func (s *Server) Close() error {
	s.cancel()
	s.stopping.Do(s.session.stop)
	s.session.work.Wait()
	var errs []error
	if s.fs.count() == 0 {
		if err := unix.Unmount(s.dir, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil && !errors.Is(err, unix.EINVAL) {
			errs = append(errs, &os.PathError{Op: "unmount", Path: s.dir, Err: err})
		}
	}
	return errors.Join(append(errs, s.session.close())...)
}
