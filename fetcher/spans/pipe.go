package spans

import (
	"context"
	"io"
)

// pipe carries a stream from one goroutine to another through a few buffers,
// which io.Pipe does not have: without them the two would take turns.
type pipe struct {
	ctx     context.Context // of the errgroup that both ends belong to
	full    chan []byte
	empty   chan []byte
	filling []byte // the writer's
	rest    []byte // unread part of cur
	cur     []byte
	err     error // the writer's, set before full is closed
}

const (
	pipeBuffers    = 4
	pipeBufferSize = 256 << 10
)

func newPipe(ctx context.Context) *pipe {
	p := &pipe{ctx: ctx, full: make(chan []byte, pipeBuffers), empty: make(chan []byte, pipeBuffers)}
	for range pipeBuffers {
		p.empty <- make([]byte, pipeBufferSize)
	}
	return p
}

// Write implements io.Writer. Data is sent when a buffer is full: the decoder's
// own runs are short.
func (p *pipe) Write(data []byte) (int, error) {
	size := len(data)
	for len(data) > 0 {
		if p.filling == nil {
			select {
			case b := <-p.empty:
				p.filling = b[:0]
			case <-p.ctx.Done():
				return 0, p.ctx.Err()
			}
		}
		n := min(len(data), pipeBufferSize-len(p.filling))
		p.filling = append(p.filling, data[:n]...)
		data = data[n:]
		if len(p.filling) == pipeBufferSize {
			p.full <- p.filling
			p.filling = nil
		}
	}
	return size, nil
}

// finish ends the stream: the reader sees err, or io.EOF for nil.
func (p *pipe) finish(err error) {
	if len(p.filling) > 0 && err == nil {
		p.full <- p.filling
	}
	p.err = err
	close(p.full)
}

// Read implements io.Reader for the other end.
func (p *pipe) Read(b []byte) (int, error) {
	if len(p.rest) == 0 {
		if p.cur != nil {
			p.empty <- p.cur[:pipeBufferSize]
			p.cur = nil
		}
		next, ok := <-p.full
		if !ok {
			if p.err != nil {
				return 0, p.err
			}
			return 0, io.EOF
		}
		p.cur, p.rest = next, next
	}
	n := copy(b, p.rest)
	p.rest = p.rest[n:]
	return n, nil
}
