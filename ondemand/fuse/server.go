package fuse

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
	"github.com/lacuna-snapshotter/lacuna/internal/child"
	"github.com/lacuna-snapshotter/lacuna/ondemand"
	"github.com/lacuna-snapshotter/lacuna/ondemand/hold/inflight"
)

// Options are what a server is made of.
type Options struct {
	// Dir is where the session is mounted.
	Dir string
	// Loop has blobs mounted through loop devices also where the kernel can mount
	// files.
	Loop bool
	// ChangeLoop is erofs.ChangeLoop in another process: if this one died in it,
	// its descriptors would stay open until the next daemon has answered the
	// reads that it waits for.
	ChangeLoop func(device, from, to string, sparse bool) error
	// Loops are erofs.Loops of before the session was opened, by the paths of
	// an earlier one. The server owns the map.
	Loops map[string][]string
	Log   *slog.Logger
}

// Server is the transport.
type Server struct {
	dir     string
	log     *slog.Logger
	fs      *blobFS
	session *session
	loops   *loops
	endMove context.CancelFunc // ends what loops waits for
	loop    bool
	*ondemand.Requests

	stopping sync.Once
}

// Serve answers the requests of a session. It owns the device and the in-flight table from
// now on, until Close.
func Serve(dev *os.File, j *inflight.Table, o Options) (*Server, error) {
	r := ondemand.NewRequests(o.Log, true)
	taking, endMove := context.WithCancel(r.Context())
	s := &Server{
		dir: o.Dir, log: o.Log, loop: o.Loop, endMove: endMove, fs: newFS(r), Requests: r,
		loops: &loops{change: o.ChangeLoop, ctx: taking, devices: o.Loops},
	}
	var err error
	if s.session, err = newSession(dev, j, s.fs, o.Log); err != nil {
		endMove()
		return nil, errors.Join(err, dev.Close(), j.Close())
	}
	s.session.start()
	return s, nil
}

// Name implements ondemand.Transport.
func (s *Server) Name() string { return transportName }

// Serves implements ondemand.Transport. A mount of the session's file goes through
// it for good; that of a loop device until the blob is complete, and durable: else it
// may have holes again.
func (s *Server) Serves(b *ondemand.Blob) bool {
	return !b.Durable() || s.loops.reads(s.path(b)) || !s.loops.reads(b.Path())
}

// Revive implements ondemand.Reviver. Reads have failed and nothing wrong was
// read, so a loop device is all right with a file of this session.
func (s *Server) Revive(b *ondemand.Blob) error {
	to, sparse := s.path(b), true
	if b.Durable() {
		to, sparse = b.Path(), false
	}
	if !s.loops.reads(s.path(b)) && !s.loops.reads(to) {
		return errors.New("its file is of a FUSE session that has ended")
	}
	return s.loops.move(s.path(b), to, sparse)
}

// Attach implements ondemand.Transport. Complete blobs have a file too: their
// mount may be of a time when they were not.
func (s *Server) Attach(b *ondemand.Blob, bootstrap string) error {
	return s.fs.add(name(b), b, bootstrap)
}

func name(b *ondemand.Blob) string { return b.Key().Volume + "-" + b.Key().Cookie }

// path is the blob's file in the session.
func (s *Server) path(b *ondemand.Blob) string { return filepath.Join(s.dir, name(b)) }

// Mount implements ondemand.Transport.
func (s *Server) Mount(b *ondemand.Blob, bootstrap, target string) error {
	device, sparse := b.Path(), !b.Durable()
	if sparse {
		device = s.path(b)
		// In another process: see the package's comment.
		if out, err := child.CombinedOutput(exec.Command("head", "-c0", device)); err != nil { //nolint:noctx // it asks us
			return fmt.Errorf("open %s: %w %s", device, err, out)
		}
	}
	if !sparse || !s.loop {
		err := erofs.Mount(bootstrap, device, target)
		if !errors.Is(err, unix.ENOTBLK) {
			return err
		}
	}
	name, err := erofs.MountLoop(bootstrap, device, sparse, target)
	if err == nil {
		s.loops.add(device, name)
	}
	return err
}

// Release implements ondemand.Releaser: what read the session's file reads the
// cache file from now on.
func (s *Server) Release(b *ondemand.Blob) error {
	return s.loops.move(s.path(b), b.Path(), false)
}

// Detach implements ondemand.Transport.
func (s *Server) Detach(b *ondemand.Blob) error {
	n := s.fs.get(nodeID(name(b)))
	if n == nil || n.blob != b {
		return nil
	}
	if s.Serves(b) {
		if used, err := erofs.InUse(n.bootstrap); used || err != nil {
			return ondemand.Busy(b, err)
		}
	}
	s.loops.forget(s.path(b), b.Path())
	return s.fs.remove(name(b))
}

// Needed implements ondemand.Transport. Blobs that are not attached may have
// mounts too; only those on loop devices are known.
func (s *Server) Needed() bool {
	for _, n := range s.fs.all() {
		if s.Serves(n.blob) {
			return true
		}
	}
	return s.loops.below(s.dir)
}

// Drain implements ondemand.Transport.
func (s *Server) Drain() {
	s.Leave()
	s.endMove()
	s.stopping.Do(s.session.stop)
	s.Wait()
}

// Close implements ondemand.Transport. Fills under way are ended. Where no blob
// is attached any more the session is unmounted.
func (s *Server) Close() error {
	s.End()
	s.stopping.Do(s.session.stop)
	s.WaitAll()
	var errs []error
	attached := s.fs.all()
	if len(attached) > 0 {
		s.log.Info("reads wait as long as a holder has the FUSE session; without one they give EIO", "blobs", len(attached))
	}
	if len(attached) == 0 && !s.Early() {
		errs = append(errs, unmountSession(s.dir))
	}
	return errors.Join(append(errs, s.session.close())...)
}
