package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync/atomic"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// Content is random access to the bytes that a descriptor names, as a packed layer:
// what the distribution specification calls a blob.
type Content struct {
	repo       *Repository
	desc       v1.Descriptor
	patient    bool
	distrusted distrusted

	// target is where the registry last redirected to, often a signed URL of
	// an object store. It saves a round trip a read until it is refused.
	target atomic.Pointer[target]
}

// Content returns access to what a descriptor names. It sends no request.
func (r *Repository) Content(desc v1.Descriptor) *Content { return &Content{repo: r, desc: desc} }

// Patient makes readers wait rather than fail: what may go well later is tried
// until the reader's context ends. It is called before the
// content is used.
func (c *Content) Patient() *Content {
	c.patient = true
	return c
}

// Size is the content's size as its descriptor says; zero means that it is unknown.
func (c *Content) Size() int64 { return c.desc.Size }

// ReadAt fills p from the content's bytes at off, or fails.
func (c *Content) ReadAt(ctx context.Context, p []byte, off int64) error {
	return c.ReadVerified(ctx, p, off, nil)
}

// ReadVerified is ReadAt with a check of the bytes. Where verify, if not nil, fails,
// they are read again from the next host; when no host is left, the error is a
// [*BadBytesError].
func (c *Content) ReadVerified(ctx context.Context, p []byte, off int64, verify func(p []byte) error) error {
	return c.verified(ctx, off, int64(len(p)), func(r io.Reader) error {
		_, err := io.ReadFull(r, p)
		if err == nil && verify != nil {
			err = verify(p)
			return wrongBytes(err)
		}
		return err
	})
}

// ReadStart returns the content's first n bytes, as ReadVerified reads them. It makes
// room for them as they arrive, so that a promise costs nothing.
func (c *Content) ReadStart(ctx context.Context, n int64, verify func(p []byte) error) (p []byte, err error) {
	err = c.verified(ctx, 0, n, func(r io.Reader) error {
		if p, err = io.ReadAll(r); err != nil {
			return err
		}
		return wrongBytes(verify(p))
	})
	return p, err
}

// verified calls read with readers of other hosts as long as it says that the bytes
// are wrong and there are any.
func (c *Content) verified(ctx context.Context, off, n int64, read func(io.Reader) error) error {
	for {
		r := c.open(ctx, off, n)
		err := read(r)
		r.Close()
		var wrong *wrongError
		if !errors.As(err, &wrong) {
			return err
		}
		if err := r.Reject(wrong.error); err != nil {
			return err
		}
	}
}

// wrongError sets the error of a verification apart from one of reading.
type wrongError struct{ error }

func wrongBytes(err error) error {
	if err == nil {
		return nil
	}
	return &wrongError{err}
}

// Open returns a reader of the content's bytes [off, off+n). A body that breaks
// off is continued with another request, within the retry policy; the reader
// gives n bytes or an error. It must be closed, and lives no longer than ctx.
//
// The bytes are not verified. A caller that finds them wrong says so with the reader's
// method Reject(cause error) error; see [spans.Rejecter].
func (c *Content) Open(ctx context.Context, off, n int64) io.ReadCloser { return c.open(ctx, off, n) }

func (c *Content) open(ctx context.Context, off, n int64) *contentReader {
	ctx, cancel := context.WithCancel(ctx)
	return &contentReader{content: c, ctx: ctx, cancel: cancel, off: off, end: off + n}
}

// target is a redirect's target. It is asked as the host that it came from would:
// its certificates and proxies are that one's, its trust is none.
type target struct {
	req  *http.Request
	from *host
}

// request goes to the last redirect's target, and to the registry where there
// is none or it is refused.
func (r *contentReader) request(ctx context.Context) (*answer, error) {
	of := r.content
	c := call{
		op: r.op(), path: "blobs/" + of.desc.Digest.String(), cap: contentCapability,
		header: http.Header{"Range": {fmt.Sprintf("bytes=%d-%d", r.off, r.end-1)}},
		accept: []int{http.StatusPartialContent, http.StatusOK},
		check:  r.checkRange, last: of.distrusted.since,
	}
	if t := of.target.Load(); t != nil {
		a, err := of.repo.sendTarget(ctx, t, c)
		if err == nil {
			return a, nil
		}
		if ctx.Err() != nil {
			return nil, of.repo.failure(c, t.req.URL.Host, 0, err)
		}
		of.target.CompareAndSwap(t, nil)
	}
	a, err := of.repo.send(ctx, c)
	if err != nil {
		return nil, err
	}
	if a.Request.URL.RawQuery != "" && a.Request.Header.Get("Authorization") == "" && a.Request.URL.Host != a.from.Host {
		of.target.Store(&target{req: a.Request, from: a.from})
	}
	return a, nil
}

// sendTarget asks a remembered redirect target, which gets no credentials.
func (r *Repository) sendTarget(ctx context.Context, t *target, c call) (*answer, error) {
	req, err := r.request(ctx, t.req.URL, c.header)
	if err != nil {
		return nil, err
	}
	resp, err := t.from.client.Do(req)
	if err != nil {
		return nil, redact(err)
	}
	if resp.StatusCode != http.StatusPartialContent {
		discard(resp)
		return nil, fmt.Errorf("status %d", resp.StatusCode)
	}
	if err := c.check(resp); err != nil {
		resp.Body.Close()
		return nil, err
	}
	return &answer{resp, t.from}, nil
}

// checkRange accepts 206 with the range that was asked, or its beginning, and 200.
func (r *contentReader) checkRange(resp *http.Response) error {
	size := r.content.desc.Size
	if resp.StatusCode == http.StatusPartialContent {
		var first, last, total int64
		got := resp.Header.Get("Content-Range")
		n, _ := fmt.Sscanf(got, "bytes %d-%d/%d", &first, &last, &total)
		if n < 2 || first != r.off || last > r.end-1 || last < first || n == 3 && size > 0 && total != size {
			return fmt.Errorf("%w: %q of content of %d bytes", ErrRange, got, size)
		}
	} else if resp.ContentLength >= 0 && size > 0 && resp.ContentLength != size {
		return fmt.Errorf("%w: a whole body of %d bytes for content of %d", ErrRange, resp.ContentLength, size)
	}
	return nil
}

// contentCapability is what a host must have to be asked for content.
const contentCapability = docker.HostCapabilityPull

var errStall = errors.New("no byte arrived")
