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

// Run is the keeper's life. It returns when it is told to end.
func Run() error {
	f := os.NewFile(listenerFD, "listener")
	listener, err := net.FileListener(f)
	if err != nil {
		return fmt.Errorf("keeper: started by hand? %w", err)
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

// serve answers one connection until it ends. Its end tells the daemon of ours.
func (p *process) serve(conn *net.UnixConn) {
	defer conn.Close()
	for {
		m, err := receive(conn)
		if err != nil {
			return
		}
		if err := p.answer(conn, m); err != nil {
			return
		}
	}
}

func (p *process) answer(conn *net.UnixConn, m packet) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch m.kind {
	case cmdKeep:
		if m.file == nil || len(p.held) >= maxHeld {
			m.close()
			return send(conn, ansFull, "", -1)
		}
		if old, replaced := p.held.put(m.label, m.file); replaced {
			old.Close()
		}
		return send(conn, ansDone, "", -1)
	case cmdDrop:
		if old, ok := p.held.take(m.label); ok {
			old.Close()
		}
	case cmdTake:
		for _, h := range p.held {
			if err := descriptor.Use(h.thing, func(fd int) error { return send(conn, ansHeld, h.label, fd) }); err != nil {
				return err
			}
		}
	case cmdEnd:
		// Behind the answer: the process ends with it.
		defer p.once.Do(func() { close(p.end) })
	}
	m.close()
	return send(conn, ansDone, "", -1)
}
