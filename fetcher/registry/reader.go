package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"
)

// contentReader reads a range of content over as many requests as it takes.
type contentReader struct {
	content  *Content
	ctx      context.Context // of the reader's whole life, which Close ends
	cancel   context.CancelFunc
	off, end int64
	body     io.ReadCloser
	status   int
	host     string  // that answered, after redirects
	from     *host   // that was asked
	asked    []*host // all of those
	conn     context.Context
	watchdog *time.Timer
	release  context.CancelCauseFunc
	err      error
}

func (r *contentReader) op() string {
	return fmt.Sprintf("get content %s [%d,%d)", r.content.desc.Digest, r.off, r.end)
}

// Read implements io.Reader.
func (r *contentReader) Read(p []byte) (int, error) {
	if r.off >= r.end {
		return 0, io.EOF
	}
	if r.err != nil {
		return 0, r.err
	}
	before := r.off
	r.err = r.content.repo.do(r.ctx, r.content.patient, r.fetch(p))
	return int(r.off - before), r.err
}

// fetch is one try to read into p, over the connection that is there or a new one.
func (r *contentReader) fetch(p []byte) func() error {
	return func() error {
		if r.body == nil {
			if err := r.connect(); err != nil {
				return err
			}
		}
		client := r.content.repo.client
		n, err := r.body.Read(p[:min(int64(len(p)), r.end-r.off)])
		r.watchdog.Reset(client.opts.Stall)
		r.off += int64(n)
		client.read.Add(int64(n))
		if n > 0 {
			client.health.hear(r.from.key)
		}
		if n > 0 || err == nil {
			return nil // an error comes again with the next call
		}
		return r.broken(err)
	}
}

// broken ends a connection whose body ended too early.
func (r *contentReader) broken(err error) error {
	client := r.content.repo.client
	if errors.Is(context.Cause(r.conn), errStall) {
		err = fmt.Errorf("%w for %v", errStall, client.opts.Stall)
		// Silence of the host, unless other streams of it flow.
		client.health.fail(r.from.key, time.Now().Add(-client.opts.Stall), true)
	} else if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	r.disconnect()
	return &Error{Op: r.op(), Host: r.host, Repo: r.content.repo.Name(), Status: r.status, Err: redact(err)}
}

// Close implements io.Closer.
func (r *contentReader) Close() error {
	r.disconnect()
	r.cancel()
	return nil
}

func (r *contentReader) disconnect() {
	if r.body == nil {
		return
	}
	r.watchdog.Stop()
	if r.off >= r.end {
		// Reading the end of the body frees the connection for the next range.
		var end [1]byte
		_, _ = r.body.Read(end[:])
	}
	r.body.Close()
	r.release(context.Canceled)
	r.body = nil
}

// connect sends the request for what is left.
func (r *contentReader) connect() error {
	ctx, cancel := context.WithCancelCause(r.ctx)
	a, err := r.request(ctx)
	if err != nil {
		cancel(context.Canceled)
		return err
	}
	r.from, r.host, r.status = a.from, a.Request.URL.Host, a.StatusCode
	r.asked = append(r.asked, a.from)
	r.body, r.conn, r.release = a.Body, ctx, cancel
	stall := r.content.repo.client.opts.Stall
	r.watchdog = time.AfterFunc(stall, func() { cancel(errStall) })
	if a.StatusCode == http.StatusOK {
		// The server ignores Range: what lies before is read and dropped.
		if err := r.skip(r.off, stall); err != nil {
			return r.broken(err)
		}
	}
	return nil
}

func (r *contentReader) skip(n int64, stall time.Duration) error {
	for n > 0 {
		k, err := io.CopyN(io.Discard, r.body, min(n, 1<<20))
		r.watchdog.Reset(stall)
		n -= k
		if err != nil {
			return err
		}
	}
	return nil
}
