package hold

import (
	"fmt"
	"net"
	"os"
	"sync"

	"github.com/lacuna-snapshotter/lacuna/internal/descriptor"
)

// listenerFD is the descriptor that a keeper inherits, behind the standard
// ones.
const listenerFD = 3

// RunKeeper is a keeper's life. It returns when the daemon ends it.
func RunKeeper() error {
	f := os.NewFile(listenerFD, "listener")
	listener, err := net.FileListener(f)
	if err != nil {
		return fmt.Errorf("a keeper is started by the daemon only: %w", err)
	}
	f.Close()
	p := &process{end: make(chan struct{})}
	go func() {
		<-p.end
		listener.Close()
	}()
	for {
		conn, err := listener.Accept()
		select {
		case <-p.end:
			return nil
		default:
		}
		if err != nil {
			return err
		}
		go p.serve(conn.(*net.UnixConn))
	}
}

// process is what a keeper holds.
type process struct {
	mu   sync.Mutex
	held shelf[*os.File]
	end  chan struct{}
	once sync.Once
}

// serve answers one connection. When the keeper dies the connection ends, which tells
// the daemon.
func (p *process) serve(conn *net.UnixConn) {
	defer conn.Close()
	for {
		m, err := receive(conn)
		if err != nil {
			return
		}
		if err := p.answer(conn, m); err != nil {
			// A daemon that has not waited for the answer may have sent more.
			_ = conn.CloseWrite()
		}
	}
}

func (p *process) answer(conn *net.UnixConn, m packet) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch m.kind {
	case cmdHold:
		if m.file == nil || len(p.held) >= maxHeld {
			m.close()
			return send(conn, ansFull, "", -1)
		}
		if old, replaced := p.held.put(m.label, m.file); replaced {
			old.Close()
		}
		return send(conn, ansDone, "", -1)
	case cmdRelease:
		if old, ok := p.held.remove(m.label); ok {
			old.Close()
		}
	case cmdAdopt:
		for _, h := range p.held {
			if err := descriptor.Use(h.thing, func(fd int) error { return send(conn, ansHeld, h.label, fd) }); err != nil {
				return err
			}
		}
	case cmdEnd:
		// After the answer is sent.
		defer p.once.Do(func() { close(p.end) })
	}
	m.close()
	return send(conn, ansDone, "", -1)
}
