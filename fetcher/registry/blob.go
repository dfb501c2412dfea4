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

// Blob is random access to one blob.
type Blob struct {
	repo    *Repository
	desc    v1.Descriptor
	patient bool
	liars   liars

	// target is where the registry last redirected to, often a signed URL of
	// an object store. It saves a round trip a read until it is refused.
	target atomic.Pointer[target]
}

// Blob returns access to a blob. It sends no request.
func (r *Repository) Blob(desc v1.Descriptor) *Blob { return &Blob{repo: r, desc: desc} }

// Patient makes readers wait rather than fail: what may go well later is tried
// until the reader's context ends. It is called before the blob is used.
func (b *Blob) Patient() *Blob {
	b.patient = true
	return b
}

// Size is the blob's size as its descriptor says; zero means that it is unknown.
func (b *Blob) Size() int64 { return b.desc.Size }

// ReadAt fills p from the blob's bytes at off, or fails.
func (b *Blob) ReadAt(ctx context.Context, p []byte, off int64) error {
	return b.ReadVerified(ctx, p, off, nil)
}

// ReadVerified is ReadAt with a check of the bytes. Where verify, if not nil, fails,
// they are read again from the next host; when no host is left, the error is a
// [*BadBytesError].
func (b *Blob) ReadVerified(ctx context.Context, p []byte, off int64, verify func(p []byte) error) error {
	return b.verified(ctx, off, int64(len(p)), func(r io.Reader) error {
		_, err := io.ReadFull(r, p)
		if err == nil && verify != nil {
			err = verify(p)
			return wrongBytes(err)
		}
		return err
	})
}

// ReadStart returns the blob's first n bytes, as ReadVerified reads them. It makes
// room for them as they arrive, so that a promise costs nothing.
func (b *Blob) ReadStart(ctx context.Context, n int64, verify func(p []byte) error) (p []byte, err error) {
	err = b.verified(ctx, 0, n, func(r io.Reader) error {
		if p, err = io.ReadAll(r); err != nil {
			return err
		}
		return wrongBytes(verify(p))
	})
	return p, err
}

// verified calls read with readers of other hosts as long as it says that the bytes
// are wrong and there are any.
func (b *Blob) verified(ctx context.Context, off, n int64, read func(io.Reader) error) error {
	for {
		r := b.open(ctx, off, n)
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

// Open returns a reader of the blob's bytes [off, off+n). A body that breaks
// off is continued with another request, within the retry policy; the reader
// gives n bytes or an error. It must be closed, and lives no longer than ctx.
//
// The bytes are not verified. Whoever finds them wrong says so with the reader's
// method Reject(cause error) error; see [spans.Rejecter].
func (b *Blob) Open(ctx context.Context, off, n int64) io.ReadCloser { return b.open(ctx, off, n) }

func (b *Blob) open(ctx context.Context, off, n int64) *blobReader {
	ctx, cancel := context.WithCancel(ctx)
	return &blobReader{blob: b, ctx: ctx, cancel: cancel, off: off, end: off + n}
}

// target is a redirect's target. It is asked as the host that it came from would:
// its certificates and proxies are that one's, its trust is none.
type target struct {
	req  *http.Request
	from *host
}

// request goes to the last redirect's target, and to the registry where there
// is none or it is refused.
func (r *blobReader) request(ctx context.Context) (*answer, error) {
	b := r.blob
	c := call{
		op: r.op(), path: "blobs/" + b.desc.Digest.String(), cap: blobCapability,
		header: http.Header{"Range": {fmt.Sprintf("bytes=%d-%d", r.off, r.end-1)}},
		accept: []int{http.StatusPartialContent, http.StatusOK},
		check:  r.checkRange, last: b.liars.since,
	}
	if t := b.target.Load(); t != nil {
		a, err := b.repo.sendTarget(ctx, t, c)
		if err == nil {
			return a, nil
		}
		if ctx.Err() != nil {
			return nil, b.repo.failure(c, t.req.URL.Host, 0, err)
		}
		b.target.CompareAndSwap(t, nil)
	}
	a, err := b.repo.send(ctx, c)
	if err != nil {
		return nil, err
	}
	if a.Request.URL.RawQuery != "" && a.Request.Header.Get("Authorization") == "" && a.Request.URL.Host != a.from.Host {
		b.target.Store(&target{req: a.Request, from: a.from})
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
func (r *blobReader) checkRange(resp *http.Response) error {
	size := r.blob.desc.Size
	if resp.StatusCode == http.StatusPartialContent {
		var first, last, total int64
		got := resp.Header.Get("Content-Range")
		n, _ := fmt.Sscanf(got, "bytes %d-%d/%d", &first, &last, &total)
		if n < 2 || first != r.off || last > r.end-1 || last < first || n == 3 && size > 0 && total != size {
			return fmt.Errorf("%w: %q of a blob of %d bytes", ErrRange, got, size)
		}
	} else if resp.ContentLength >= 0 && size > 0 && resp.ContentLength != size {
		return fmt.Errorf("%w: a whole body of %d bytes for a blob of %d", ErrRange, resp.ContentLength, size)
	}
	return nil
}

// blobCapability is what a host must have to be asked for blobs.
const blobCapability = docker.HostCapabilityPull

var errStall = errors.New("no byte arrived")
