package harness

import (
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// Link is a slow line before a server: a TCP proxy that delays and paces.
type Link struct {
	Addr string

	listener net.Listener
	to       string
	delay    time.Duration // each way
	down     pacer
	up       pacer
	received atomic.Int64 // bytes that went to the client
	refuse   atomic.Bool
	mu       sync.Mutex
	conns    map[net.Conn]struct{}
}

// StartLink puts a line before an address. All connections share its rate.
func (e *Env) StartLink(to string, line Line) (*Link, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	k := &Link{Addr: l.Addr().String(), listener: l, to: to, delay: line.RoundTrip / 2, conns: map[net.Conn]struct{}{}}
	k.down.bytes, k.up.bytes = line.Rate/8, line.Rate/8
	go k.accept()
	e.onClose(func() error { k.close(); return nil })
	return k, nil
}

// Received is how many bytes clients have got over the line.
func (k *Link) Received() int64 { return k.received.Load() }

// Cut breaks all connections and refuses new ones until Mend.
func (k *Link) Cut() {
	k.refuse.Store(true)
	k.breakAll()
}

// Mend ends a Cut.
func (k *Link) Mend() { k.refuse.Store(false) }

func (k *Link) breakAll() {
	k.mu.Lock()
	defer k.mu.Unlock()
	for c := range k.conns {
		c.Close()
	}
}

func (k *Link) close() {
	k.listener.Close()
	k.breakAll()
}

func (k *Link) keep(c net.Conn) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.conns[c] = struct{}{}
}

func (k *Link) drop(c net.Conn) {
	c.Close()
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.conns, c)
}

func (k *Link) accept() {
	for {
		client, err := k.listener.Accept()
		if err != nil {
			return
		}
		if k.refuse.Load() {
			client.Close()
			continue
		}
		go k.serve(client)
	}
}

func (k *Link) serve(client net.Conn) {
	k.keep(client)
	defer k.drop(client)
	time.Sleep(2 * k.delay)
	server, err := net.Dial("tcp", k.to)
	if err != nil {
		return
	}
	k.keep(server)
	defer k.drop(server)
	go k.carry(server, client, &k.up, nil)
	k.carry(client, server, &k.down, &k.received)
}

// packet is data and the time when it arrives.
type packet struct {
	data []byte
	due  time.Time
}

// carry copies one direction until it ends, and closes the other end.
func (k *Link) carry(dst, src net.Conn, pace *pacer, count *atomic.Int64) {
	queue := make(chan packet, 64)
	go func() {
		defer close(queue)
		for {
			b := make([]byte, 16<<10)
			n, err := src.Read(b)
			if n > 0 {
				queue <- packet{b[:n], pace.reserve(n).Add(k.delay)}
			}
			if err != nil {
				return
			}
		}
	}()
	for p := range queue {
		time.Sleep(time.Until(p.due))
		if _, err := dst.Write(p.data); err != nil {
			break
		}
		if count != nil {
			count.Add(int64(len(p.data)))
		}
	}
	dst.Close()
	src.Close()
	for range queue {
	}
	_, _ = io.Copy(io.Discard, src)
}

// pacer gives each byte its time on a shared line.
type pacer struct {
	mu    sync.Mutex
	bytes float64 // a second
	free  time.Time
}

func (p *pacer) reserve(n int) time.Time {
	p.mu.Lock()
	defer p.mu.Unlock()
	if now := time.Now(); p.free.Before(now) {
		p.free = now
	}
	p.free = p.free.Add(time.Duration(float64(n) / p.bytes * float64(time.Second)))
	return p.free
}
