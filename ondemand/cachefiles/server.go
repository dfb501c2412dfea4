package cachefiles

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/lacuna-snapshotter/lacuna/ondemand"
)

// Holder holds duplicates of descriptors for the daemon after this one. It may
// be nil, where nothing outlives the daemon.
type Holder interface {
	Hold(label string, fd int) error
	Release(label string) error
}

// Kept is a descriptor that an earlier daemon left with its keeper.
type Kept struct {
	Label string
	File  *os.File
}

// Options are what a Server is made of.
type Options struct {
	Dir    string // of the cache, as in Config
	Engine *ondemand.Engine
	Holder Holder
	Log    *slog.Logger
	// Adopted says that the device has served an earlier daemon; Kept are the
	// objects that it had open.
	Adopted bool
	Kept    []Kept
}

// Server is the transport.
type Server struct {
	Options
	kernel  kernel
	dialect Dialect // the reader's alone

	ctx    context.Context // of all fills; ends with Close
	cancel context.CancelFunc
	loop   chan struct{} // closed when no more requests are read
	failed chan error
	cull   chan struct{} // the kernel asks for culling
	work   sync.WaitGroup

	seen func(message) // for tests: every request, in order

	stopping  sync.Once
	stopped   atomic.Bool
	leaving   atomic.Bool
	recovered chan struct{} // closed by Recover

	mu         sync.Mutex
	objects    map[uint32]*object
	reading    map[request]bool // READs that are worked on
	bootstraps map[ondemand.Key]*bootstrap
}

// request tells READs apart. IDs are reused, but not while one is worked on for
// the same object.
type request struct{ id, object uint32 }

// Serve answers the requests of a bound device, which it owns from now on,
// until Close.
func Serve(dev *os.File, o Options) (*Server, error) {
	d, err := newDevice(dev)
	if err != nil {
		dev.Close()
		return nil, err
	}
	if o.Adopted {
		if err := d.command("restore"); err != nil {
			return nil, errors.Join(fmt.Errorf("the last daemon's requests: %q: %w", "restore", err), d.close())
		}
	}
	return serve(d, o), nil
}

func serve(k kernel, o Options) *Server {
	s := newServer(k, o)
	s.start()
	return s
}

func newServer(k kernel, o Options) *Server {
	ctx, cancel := context.WithCancel(context.Background())
	return &Server{
		Options: o, kernel: k, ctx: ctx, cancel: cancel,
		loop: make(chan struct{}), failed: make(chan error, 1), cull: make(chan struct{}, 1), recovered: make(chan struct{}),
		objects: map[uint32]*object{}, reading: map[request]bool{}, bootstraps: map[ondemand.Key]*bootstrap{},
	}
}

func (s *Server) start() {
	for _, kept := range s.Kept {
		s.adopt(kept)
	}
	go s.read()
	s.goDo(s.cullWhenAsked)
}

// adopt takes an object that the last daemon had open. Its blob may be attached
// yet.
func (s *Server) adopt(kept Kept) {
	var m message
	_, err := fmt.Sscanf(kept.Label, "%d %q %q", &m.object, &m.volume, &m.cookie)
	if err == nil {
		m.fd, err = unix.FcntlInt(kept.File.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	}
	err = errors.Join(err, kept.File.Close())
	if err != nil {
		s.Log.Error("taking over an object", "label", kept.Label, "error", err)
		return
	}
	o := s.register(m)
	o.kept = true
	s.goDo(func() {
		defer close(o.opened)
		b := s.find(m)
		if b == nil || s.bind(o, b) != nil {
			// Not ours any more, or the kernel has closed it since.
			s.Log.Info("letting go of an object of the last daemon", "cookie", o.cookie)
			s.forget(o)
		}
	})
}

// register makes an object known before its OPEN is answered.
func (s *Server) register(m message) *object {
	o := &object{id: m.object, volume: m.volume, cookie: m.cookie, fd: m.fd, opened: make(chan struct{}), gone: make(chan struct{})}
	s.mu.Lock()
	s.objects[o.id] = o
	s.mu.Unlock()
	return o
}

// Name implements ondemand.Transport.
func (s *Server) Name() string { return "cachefiles" }

// Failed implements ondemand.Transport.
func (s *Server) Failed() <-chan error { return s.failed }

// Recover implements ondemand.Transport. What a dead daemon has left comes from the
// kernel again.
func (s *Server) Recover() { close(s.recovered) }

// early reports whether Recover was not called yet.
func (s *Server) early() bool {
	select {
	case <-s.recovered:
		return false
	default:
		return true
	}
}

// successive reports whether a request that fails now is left for the next daemon.
func (s *Server) successive() bool { return s.leaving.Load() && s.Holder != nil }

// Drain implements ondemand.Transport.
func (s *Server) Drain() {
	s.leaving.Store(true)
	s.stop()
	ondemand.WaitDrained(&s.work)
}

// Close implements ondemand.Transport. Fills under way are ended.
func (s *Server) Close() error {
	if s.early() {
		s.leaving.Store(true) // what is not attached yet must not fail for it
	}
	s.cancel()
	s.stop()
	s.work.Wait()
	s.mu.Lock()
	objects := s.objects
	if len(objects) > 0 {
		s.Log.Info("reads are left to whoever holds the cachefiles device; without a holder they give EIO", "objects", len(objects))
	}
	s.objects = map[uint32]*object{}
	s.mu.Unlock()
	var errs []error
	for _, o := range objects {
		errs = append(errs, o.close())
	}
	return errors.Join(append(errs, s.kernel.close())...)
}

// stop ends the reader.
func (s *Server) stop() {
	s.stopping.Do(func() {
		s.stopped.Store(true)
		s.kernel.wake()
		<-s.loop
		close(s.cull)
	})
}

func (s *Server) goDo(f func()) {
	s.work.Add(1)
	go func() {
		defer s.work.Done()
		f()
	}()
}

func (s *Server) done(r request) {
	s.mu.Lock()
	delete(s.reading, r)
	s.mu.Unlock()
}

// find returns the blob of an OPEN's keys. Until Recover it waits for one.
func (s *Server) find(m message) *ondemand.Blob {
	key := ondemand.Key{Volume: baseDomain(domain(m.volume)), Cookie: m.cookie}
	if b := s.lookup(key); b != nil {
		return b
	}
	select {
	case <-s.recovered:
	case <-s.ctx.Done():
	}
	return s.lookup(key)
}

// lookup finds a blob of this transport. In v5 there is no domain: then the
// cookie is all there is.
func (s *Server) lookup(key ondemand.Key) *ondemand.Blob {
	b := s.Engine.Lookup(key)
	if key.Volume == "" {
		for _, any := range s.Engine.All() {
			if any.Key().Cookie == key.Cookie {
				b = any
			}
		}
	}
	if b == nil {
		return nil
	}
	if _, ours := b.Backing().(*backing); !ours {
		return nil
	}
	return b
}

// bind connects an object with a blob's backing.
func (s *Server) bind(o *object, b *ondemand.Blob) error {
	st := b.Backing().(*backing)
	o.mu.Lock()
	o.backing = st
	o.mu.Unlock()
	if err := st.bind(s.ctx, o); err != nil {
		return err
	}
	b.Refresh()
	return nil
}

// forget lets go of an object that was not opened after all.
func (s *Server) forget(o *object) {
	s.mu.Lock()
	if s.objects[o.id] == o {
		delete(s.objects, o.id)
	}
	s.mu.Unlock()
	s.letGo(o)
}

// letGo closes all that we have of an object.
func (s *Server) letGo(o *object) {
	if st := o.bound(); st != nil {
		st.unbind(o)
	}
	if o.kept {
		if err := s.Holder.Release(label(o.id, o.volume, o.cookie)); err != nil {
			s.Log.Error("dropping a kept object", "cookie", o.cookie, "error", err)
		}
	}
	if err := o.close(); err != nil {
		s.Log.Error("closing an object", "cookie", o.cookie, "error", err)
	}
}
