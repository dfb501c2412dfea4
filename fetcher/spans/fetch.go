package spans

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sync/errgroup"
)

// Fetch brings the spans [first, last) in one request and passes each to put,
// verified, in order. The slice given to put is reused. It stops at the first
// error; what was put before it is good.
//
// Where a span's digest is wrong the bytes are rejected, and the fetch goes on from that
// span with another try, if the remote has another place to read from: see [Rejecter].
func (l *Layer) Fetch(ctx context.Context, first, last int64, put func(span int64, data []byte) error) error {
	out := &assembler{m: l.Map, next: first, last: last, put: put, buf: make([]byte, l.Map.SpanSize)}
	for range maxPlaces {
		err := l.fetch(ctx, out)
		var bad *rejectedError
		if !errors.As(err, &bad) {
			return err
		}
		out.restart()
	}
	return fmt.Errorf("layer %s: wrong bytes from each of %d places", l.Map.Layer, maxPlaces)
}

// maxPlaces bounds how many places are asked for the bytes of one fetch.
const maxPlaces = 16

// Rejecter is what a Remote's reader may be as well. Reject says that the bytes read
// so far are wrong. It returns nil where reading them again may bring others, and
// otherwise the error to report, which wraps cause.
type Rejecter interface {
	Reject(cause error) error
}

// rejectedError is the error of bytes that may be asked for again.
type rejectedError struct{ error }

// wrongBytes reports whether an error says that bytes of the layer are wrong, as
// opposed to those that never came.
func wrongBytes(err error) bool {
	var d *DigestError
	var i *inputError
	return errors.As(err, &d) || errors.As(err, &i)
}

// inputError is inflate's: the bytes are no deflate data, or end too early.
type inputError struct{ error }

func (e *inputError) Unwrap() error { return e.error }

// fetch makes one try at the spans that out still wants.
func (l *Layer) fetch(ctx context.Context, out *assembler) error {
	m := l.Map
	if out.next >= out.last {
		return nil
	}
	from, _ := m.span(out.next)
	_, to := m.span(out.last - 1)
	start, end, ok := m.streamRange(from, to)
	if !ok {
		return out.finishAll()
	}
	ck := m.checkpointBefore(start)
	packed := PackedOffset(m.Checkpoints[ck].Bit / 8)
	stop := m.stopFor(end)
	if stop <= packed {
		return fmt.Errorf("%w of layer %s: stop %d before checkpoint %d", ErrMap, m.Layer, stop, packed)
	}
	s := &segments{layer: l, ck: ck, at: packed, stop: stop, end: end}
	release, err := s.reserve(ctx)
	if err != nil {
		return err
	}
	defer release()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	body := l.Remote.Open(ctx, int64(packed), int64(stop-packed))
	defer body.Close()
	s.body = body
	if err = s.run(ctx, out); !wrongBytes(err) {
		return err
	}
	r, ok := body.(Rejecter)
	if !ok {
		return err
	}
	if rerr := r.Reject(err); rerr != nil {
		return rerr
	}
	return &rejectedError{err}
}

// run inflates what the body has into out.
func (s *segments) run(ctx context.Context, out *assembler) error {
	m := s.layer.Map
	if m.Checkpoints[s.ck].Window {
		// The window is another request: both go out together.
		g, gctx := errgroup.WithContext(ctx)
		g.Go(func() (err error) {
			s.window, err = s.layer.Windows.Window(gctx, s.ck)
			return err
		})
		g.Go(s.readAhead)
		if err := g.Wait(); err != nil {
			return err
		}
	}
	for !s.done() {
		data, at, err := s.next()
		if err != nil {
			return fmt.Errorf("layer %s at stream offset %d: %w", m.Layer, m.Checkpoints[s.ck].Stream, err)
		}
		if err := out.stream(at, data); err != nil {
			return err
		}
	}
	return out.finishAll()
}
