package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"sync/atomic"
	"time"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// Blob is random access to one blob.
type Blob struct {
	repo    *Repository
	desc    v1.Descriptor
	patient bool

	// target is where the registry last redirected to, often a signed URL of
	// an object store. It saves a round trip a read until it is refused.
	target atomic.Pointer[url.URL]
}

// Blob returns access to a blob. It sends no request.
func (r *Repository) Blob(desc v1.Descriptor) *Blob { return &Blob{repo: r, desc: desc} }

// Patient makes readers wait rather than fail: what may go well later is tried
// until the reader's context ends. It is called before the blob is used.
func (b *Blob) Patient() *Blob {
	b.patient = true
	return b
}

// Size is the blob's size as its descriptor says.
func (b *Blob) Size() int64 { return b.desc.Size }

// ReadAt fills p from the blob's bytes at off, or fails.
func (b *Blob) ReadAt(ctx context.Context, p []byte, off int64) error {
	r := b.Open(ctx, off, int64(len(p)))
	defer r.Close()
	_, err := io.ReadFull(r, p)
	return err
}

// Open returns a reader of the blob's bytes [off, off+n). A body that breaks
// off is continued with another request, within the retry policy; the reader
// gives n bytes or an error. It must be closed, and lives no longer than ctx.
func (b *Blob) Open(ctx context.Context, off, n int64) io.ReadCloser {
	ctx, cancel := context.WithCancel(ctx)
	return &blobReader{blob: b, ctx: ctx, cancel: cancel, off: off, end: off + n}
}

type blobReader struct {
	blob     *Blob
	ctx      context.Context // of the reader's whole life, which Close ends
	cancel   context.CancelFunc
	off, end int64
	body     io.ReadCloser
	host     string
	status   int
	watchdog *time.Timer
	release  context.CancelFunc
	err      error
}

func (r *blobReader) op() string {
	return fmt.Sprintf("get blob %s [%d,%d)", r.blob.desc.Digest, r.off, r.end)
}

// Read implements io.Reader.
func (r *blobReader) Read(p []byte) (int, error) {
	if r.off >= r.end {
		return 0, io.EOF
	}
	if r.err != nil {
		return 0, r.err
	}
	n := 0
	r.err = r.blob.repo.do(r.ctx, r.blob.patient, func() error {
		if r.body == nil {
			if err := r.connect(); err != nil {
				return err
			}
		}
		var err error
		n, err = r.body.Read(p[:min(int64(len(p)), r.end-r.off)])
		r.watchdog.Reset(r.blob.repo.client.opts.Stall)
		r.off += int64(n)
		r.blob.repo.client.read.Add(int64(n))
		if n > 0 || err == nil {
			return nil // an error comes again with the next call
		}
		r.disconnect()
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return &Error{Op: r.op(), Host: r.host, Repo: r.blob.repo.Name(), Status: r.status, Err: redact(err)}
	})
	return n, r.err
}

// Close implements io.Closer.
func (r *blobReader) Close() error {
	r.disconnect()
	r.cancel()
	return nil
}

func (r *blobReader) disconnect() {
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
	r.release()
	r.body = nil
}

// connect sends the request for what is left and checks that the answer is it.
func (r *blobReader) connect() error {
	ctx, cancel := context.WithCancel(r.ctx)
	resp, err := r.request(ctx)
	if err == nil {
		r.host, r.status = resp.Request.URL.Host, resp.StatusCode
		err = r.checkRange(resp)
	}
	if err != nil {
		cancel()
		return err
	}
	r.body, r.release = resp.Body, cancel
	stall := r.blob.repo.client.opts.Stall
	r.watchdog = time.AfterFunc(stall, cancel)
	if resp.StatusCode == http.StatusOK {
		// The server ignores Range: what lies before is read and dropped.
		if err := r.skip(r.off, stall); err != nil {
			r.disconnect()
			return &Error{Op: r.op(), Host: r.host, Repo: r.blob.repo.Name(), Status: r.status, Err: redact(err)}
		}
	}
	return nil
}

func (r *blobReader) skip(n int64, stall time.Duration) error {
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

// request goes to the last redirect's target, and to the registry where there
// is none or it is refused.
func (r *blobReader) request(ctx context.Context) (*http.Response, error) {
	b := r.blob
	c := call{
		op: r.op(), path: "blobs/" + b.desc.Digest.String(), cap: docker.HostCapabilityPull,
		header: http.Header{"Range": {fmt.Sprintf("bytes=%d-%d", r.off, r.end-1)}},
		accept: []int{http.StatusPartialContent, http.StatusOK},
	}
	if target := b.target.Load(); target != nil {
		if resp, err := b.repo.sendTarget(ctx, target, c); err == nil {
			return resp, nil
		}
		b.target.CompareAndSwap(target, nil)
	}
	resp, err := b.repo.send(ctx, c)
	if err != nil {
		return nil, err
	}
	if resp.Request.URL.RawQuery != "" && resp.Request.Header.Get("Authorization") == "" {
		b.target.Store(resp.Request.URL)
	}
	return resp, nil
}

// sendTarget asks a remembered redirect target, which gets no credentials.
func (r *Repository) sendTarget(ctx context.Context, target *url.URL, c call) (*http.Response, error) {
	set, err := r.client.hostsOf(r.registry)
	if err != nil || len(set.hosts) == 0 {
		return nil, errors.New("no hosts")
	}
	req, err := r.request(ctx, target, c.header)
	if err != nil {
		return nil, err
	}
	client := *set.hosts[len(set.hosts)-1].Client
	client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	resp, err := client.Do(req)
	if err != nil {
		return nil, redact(err)
	}
	if resp.StatusCode != http.StatusPartialContent && resp.StatusCode != http.StatusOK {
		discard(resp)
		return nil, fmt.Errorf("status %d", resp.StatusCode)
	}
	return resp, nil
}

// checkRange accepts 206 with the range that was asked, and 200.
func (r *blobReader) checkRange(resp *http.Response) error {
	size := r.blob.desc.Size
	var err error
	if resp.StatusCode == http.StatusPartialContent {
		var first, last, total int64
		got := resp.Header.Get("Content-Range")
		n, _ := fmt.Sscanf(got, "bytes %d-%d/%d", &first, &last, &total)
		if n < 2 || first != r.off || last > r.end-1 || last < first || n == 3 && total != size {
			err = fmt.Errorf("%w: %q of a blob of %d bytes", ErrRange, got, size)
		}
	} else if resp.ContentLength >= 0 && resp.ContentLength != size {
		err = fmt.Errorf("%w: a whole body of %d bytes for a blob of %d", ErrRange, resp.ContentLength, size)
	}
	if err != nil {
		resp.Body.Close()
		return &Error{Op: r.op(), Host: r.host, Repo: r.blob.repo.Name(), Status: resp.StatusCode, Err: err}
	}
	return nil
}
