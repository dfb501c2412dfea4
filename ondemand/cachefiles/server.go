package cachefiles

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/lacuna-snapshotter/lacuna/ondemand"
)

// Held is an object's descriptor that was held since an earlier daemon.
type Held struct {
	Label string
	File  *os.File
}

// Options are what a Server is made of.
type Options struct {
	Dir    string // of the cache, as in Config
	Engine *ondemand.Engine
	// Holder holds the objects' descriptors for the next daemon. It is nil where
	// the kernel does not let it take the device over.
	Holder ondemand.Holder
	Log    *slog.Logger
	// Adopted says that the device has served an earlier daemon; Held are the
	// objects that it had open.
	Adopted bool
	Held    []Held
}

// Server is the transport.
type Server struct {
	Options
	kernel  kernel
	dialect Dialect // the reader's alone

	loop chan struct{} // closed when no more requests are read
	cull chan struct{} // the kernel asks for culling
	*ondemand.Requests

	seen func(message) // for tests: every request, in order

	stopping sync.Once
	stopped  atomic.Bool

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
	return &Server{
		Options: o, kernel: k, Requests: ondemand.NewRequests(o.Log, o.Holder != nil),
		loop: make(chan struct{}), cull: make(chan struct{}, 1),
		objects: map[uint32]*object{}, reading: map[request]bool{}, bootstraps: map[ondemand.Key]*bootstrap{},
	}
}

func (s *Server) start() {
	for _, held := range s.Held {
		s.adopt(held)
	}
	go s.read()
	s.Go(s.cullWhenAsked)
}

// adopt adopts an object that the last daemon had open. Its blob may be attached
// later.
func (s *Server) adopt(h Held) {
	var m message
	var err error
	if m.object, m.volume, m.cookie, err = parseLabel(h.Label); err == nil {
		m.fd, err = unix.FcntlInt(h.File.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	}
	err = errors.Join(err, h.File.Close())
	if err != nil {
		s.Log.Error("an object of the last daemon could not be adopted", "label", h.Label, "error", err)
		return
	}
	o := s.register(m)
	o.held = true
	s.Go(func() {
		defer close(o.opened)
		b := s.find(m)
		if b == nil || s.bind(o, b) != nil {
			// Its layer is not attached any more, or the kernel has closed it since.
			s.Log.Info("an object of the last daemon is released", "cookie", o.cookie)
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
func (s *Server) Name() string { return name }

// Drain implements ondemand.Transport.
func (s *Server) Drain() {
	s.Leave()
	s.stop()
	s.Wait()
}

// Close implements ondemand.Transport. Fills under way are ended.
func (s *Server) Close() error {
	s.End()
	s.stop()
	s.WaitAll()
	s.mu.Lock()
	objects := s.objects
	if len(objects) > 0 {
		s.Log.Info("reads wait as long as a holder has the cachefiles device; without one they give EIO", "objects", len(objects))
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

func (s *Server) done(r request) {
	s.mu.Lock()
	delete(s.reading, r)
	s.mu.Unlock()
}

// find returns the blob of an OPEN's keys.
func (s *Server) find(m message) *ondemand.Blob {
	key := ondemand.Key{Volume: baseDomain(domain(m.volume)), Cookie: m.cookie}
	return ondemand.Find(s.Requests, func() *ondemand.Blob { return s.lookup(key) })
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
	if _, ok := b.Backing().(*backing); !ok {
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
	if err := st.bind(s.Context(), o); err != nil {
		return err
	}
	b.Refresh()
	return nil
}

// forget releases an object that was not opened after all.
func (s *Server) forget(o *object) {
	s.mu.Lock()
	if s.objects[o.id] == o {
		delete(s.objects, o.id)
	}
	s.mu.Unlock()
	s.release(o)
}

// release closes all that the server has of an object.
func (s *Server) release(o *object) {
	if st := o.bound(); st != nil {
		st.unbind(o)
	}
	if o.held {
		if err := s.Holder.Release(label(o.id, o.volume, o.cookie)); err != nil {
			s.Log.Error("an object could not be released", "cookie", o.cookie, "error", err)
		}
	}
	if err := o.close(); err != nil {
		s.Log.Error("an object could not be closed", "cookie", o.cookie, "error", err)
	}
}
