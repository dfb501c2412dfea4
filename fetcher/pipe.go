package fetcher

import (
	"context"
	"io"
)

// pipe carries a stream from one goroutine to another through a few buffers,
// which io.Pipe does not have: without them the two would take turns.
type pipe struct {
	ctx   context.Context // of the errgroup that both ends belong to
	full  chan []byte
	empty chan []byte
	rest  []byte // unread part of cur
	cur   []byte
	err   error // the writer's, set before full is closed
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

func (p *pipe) write(data []byte) error {
	for len(data) > 0 {
		select {
		case b := <-p.empty:
			n := copy(b[:pipeBufferSize], data)
			data = data[n:]
			p.full <- b[:n]
		case <-p.ctx.Done():
			return p.ctx.Err()
		}
	}
	return nil
}

// finish ends the stream: the reader sees err, or io.EOF for nil.
func (p *pipe) finish(err error) {
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
