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

// Keeper holds duplicates of descriptors for the daemon after this one. It may
// be nil, where nothing outlives the daemon.
type Keeper interface {
	Keep(label string, fd int) error
	Drop(label string) error
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
	Keeper Keeper
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
func (s *Server) successive() bool { return s.leaving.Load() && s.Keeper != nil }

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

// read is the loop. It reads until the queue is empty, then waits. After an error
// it reads on: the kernel tells only once that there is something to read.
func (s *Server) read() {
	defer close(s.loop)
	b := make([]byte, maxMessage)
	pace := ondemand.Pace{Log: s.Log, What: "reading cachefiles requests"}
	for {
		n, err := s.kernel.read(b)
		switch {
		case errors.Is(err, unix.EINTR), errors.Is(err, unix.EEXIST):
			// EEXIST: an OPEN for an object that has a descriptor, which the
			// kernel has answered.
			continue
		case err == nil && n > 0:
			pace.Good()
			s.take(b[:n])
			continue
		case err == nil, errors.Is(err, unix.EAGAIN):
			pace.Good()
			err = s.wait()
		}
		switch {
		case err == nil:
		case errors.Is(err, errWoken):
			return
		case errors.Is(err, unix.EBADF), errors.Is(err, unix.EFAULT), errors.Is(err, unix.EINVAL):
			// What we ask is wrong, and stays so.
			s.Log.Error("reading cachefiles requests", "error", err)
			s.failed <- err
			return
		default:
			pace.Failed(err)
			if s.stopped.Load() {
				return
			}
		}
	}
}

// wait returns when there may be requests, and has culling started that is asked
// for.
func (s *Server) wait() error {
	cull, err := s.kernel.wait()
	if cull {
		select {
		case s.cull <- struct{}{}:
		default:
		}
	}
	return err
}

// take starts the answer to a request. What orders requests of one object is
// done here.
func (s *Server) take(b []byte) {
	if s.dialect == Unknown {
		s.dialect = detect(b)
	}
	m, err := decode(b, s.dialect)
	if err != nil {
		s.Log.Error("decoding a cachefiles request", "error", err)
		return
	}
	if s.seen != nil {
		s.seen(m)
	}
	switch m.op {
	case opOpen:
		o := s.register(m)
		s.goDo(func() { s.open(m, o) })
	case opClose:
		s.mu.Lock()
		o := s.objects[m.object]
		delete(s.objects, m.object)
		s.mu.Unlock()
		if o != nil {
			close(o.gone)
			s.goDo(func() {
				<-o.opened // whose answer may be making a duplicate
				s.letGo(o)
			})
		}
	case opRead:
		r := request{m.id, m.object}
		s.mu.Lock()
		o, twice := s.objects[m.object], s.reading[r]
		s.reading[r] = true
		s.mu.Unlock()
		switch {
		case twice:
			return // restored while we work on it
		case o == nil:
			// Without a descriptor nothing can be said to a mainline kernel,
			// which asks again with an OPEN before it.
			s.Log.Error("request for an unknown object", "request", m)
			s.done(r)
			if s.dialect == V5 {
				s.complete(m, nil)
			}
			return
		}
		s.goDo(func() {
			filled := s.fill(m, o)
			s.done(r)
			if filled || !s.successive() {
				s.complete(m, o)
			} // else it is restored for the successor
		})
	default:
		s.Log.Error("cachefiles request with an unknown opcode", "opcode", m.op, "id", m.id)
	}
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

// open answers an OPEN.
func (s *Server) open(m message, o *object) {
	defer close(o.opened)
	b := s.find(m)
	if b == nil && s.early() && s.successive() {
		return // restored for the successor, as when it was read of a dead daemon
	}
	if b == nil {
		s.Log.Warn("the kernel asks for keys that are not attached", "volume", m.volume, "cookie", m.cookie)
		s.reply(openReply(s.dialect, m, -int64(unix.ENOENT)), m)
		s.forget(o)
		return
	}
	// While the reply is written the descriptor stays open: the kernel would
	// fail the OPEN, and reuse the number.
	err := o.use(func(int) error { return s.kernel.command(openReply(s.dialect, m, b.Size())) })
	if err != nil {
		s.Log.Error("answering a cachefiles request", "request", m, "error", err)
		s.forget(o)
		return
	}
	if s.Keeper != nil {
		err := o.use(func(fd int) error { return s.Keeper.Keep(label(o.id, o.volume, o.cookie), fd) })
		if err != nil {
			s.Log.Error("object is not kept", "cookie", o.cookie, "error", err)
		}
		o.kept = err == nil
	}
	if err := s.bind(o, b); err != nil {
		s.Log.Error("looking at a cache file", "cookie", o.cookie, "error", err)
	}
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
	if _, ours := b.Store().(*store); !ours {
		return nil
	}
	return b
}

// bind connects an object with a blob's store.
func (s *Server) bind(o *object, b *ondemand.Blob) error {
	st := b.Store().(*store)
	o.mu.Lock()
	o.store = st
	o.mu.Unlock()
	if err := st.bind(s.ctx, o); err != nil {
		return err
	}
	b.Refresh()
	return nil
}

// fill brings a READ's range, or says in the log why not.
func (s *Server) fill(m message, o *object) bool {
	select {
	case <-o.opened:
	case <-s.ctx.Done():
		return false
	}
	st := o.bound()
	var b *ondemand.Blob
	if st != nil {
		b = s.lookup(st.key)
	}
	if b == nil {
		ondemand.LogFailure(s.Log, s.successive(), errors.New("its layer is not attached"), "request", m)
		return false
	}
	if st.covers(m.off, m.n) {
		if err := st.doubt(s.ctx, o); err != nil {
			s.Log.Error("looking at a cache file", "cookie", o.cookie, "error", err)
		}
	}
	if err := b.Fill(s.ctx, m.off, m.n); err != nil {
		ondemand.LogFailure(s.Log, s.successive(), err)
		return false
	}
	return true
}

// complete ends a READ: the kernel looks at the cache file again.
func (s *Server) complete(m message, o *object) {
	if s.dialect == V5 {
		s.reply(readReply(m), m)
		return
	}
	err := o.use(func(fd int) error { return s.kernel.complete(fd, m.id) })
	// EINVAL: the reader was killed, or the object dropped, meanwhile.
	if err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, errClosed) {
		s.Log.Error("completing a cachefiles request", "request", m, "error", err)
	}
}

func (s *Server) reply(command string, m message) {
	if err := s.kernel.command(command); err != nil && !errors.Is(err, unix.EINVAL) {
		s.Log.Error("answering a cachefiles request", "request", m, "error", err)
	}
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
		if err := s.Keeper.Drop(label(o.id, o.volume, o.cookie)); err != nil {
			s.Log.Error("dropping a kept object", "cookie", o.cookie, "error", err)
		}
	}
	if err := o.close(); err != nil {
		s.Log.Error("closing an object", "cookie", o.cookie, "error", err)
	}
}
