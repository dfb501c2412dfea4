package keeper

import (
	"fmt"
	"net"
	"os"
	"slices"
	"sync"
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
	p := &process{held: map[string]*os.File{}, end: make(chan struct{})}
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
	mu    sync.Mutex
	held  map[string]*os.File
	order []string // labels as they came
	end   chan struct{}
	once  sync.Once
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
		if old := p.held[m.label]; old != nil {
			old.Close()
		} else {
			p.order = append(p.order, m.label)
		}
		p.held[m.label] = m.file
		return send(conn, ansDone, "", -1)
	case cmdDrop:
		if old := p.held[m.label]; old != nil {
			old.Close()
			delete(p.held, m.label)
			p.order = slices.DeleteFunc(p.order, func(l string) bool { return l == m.label })
		}
	case cmdTake:
		for _, label := range p.order {
			if err := sendFile(conn, label, p.held[label]); err != nil {
				return err
			}
		}
	case cmdEnd:
		p.once.Do(func() { close(p.end) })
	}
	m.close()
	return send(conn, ansDone, "", -1)
}

// sendFile sends without File.Fd, which would make the description, that the
// daemon shares, blocking.
func sendFile(conn *net.UnixConn, label string, f *os.File) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var sendErr error
	if err := raw.Control(func(fd uintptr) { sendErr = send(conn, ansHeld, label, int(fd)) }); err != nil {
		return err
	}
	return sendErr
}
