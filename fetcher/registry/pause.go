package registry

import (
	"context"
	"time"
)

// Pause is told that a request waits before it is sent again, so that its owner
// can lend out what others could use meanwhile. The resume that it returns is
// called exactly once, when the wait is over or ctx has ended; its error ends the
// request.
//
// One operation may have several requests, so a Pause is called from several
// goroutines, also before the resume of an earlier call.
type Pause func() (resume func(context.Context) error)

type pauseKey struct{}

// WithPause returns a context whose requests call p around each wait.
func WithPause(ctx context.Context, p Pause) context.Context {
	return context.WithValue(ctx, pauseKey{}, p)
}

// sleep waits for d, or until ctx ends, which is an error.
func sleep(ctx context.Context, d time.Duration) (err error) {
	if p, ok := ctx.Value(pauseKey{}).(Pause); ok {
		resume := p()
		defer func() {
			if rerr := resume(ctx); err == nil {
				err = rerr
			}
		}()
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}
