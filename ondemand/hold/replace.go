package hold

import (
	"errors"
	"time"
)

// complete starts the keepers that are missing. One that cannot be started is tried
// again later, if there is another.
func (s *Set) complete() error {
	var errs []error
	for i, k := range s.keepers {
		if k == nil {
			var err error
			if s.keepers[i], err = s.start(i); err != nil {
				errs = append(errs, err)
			}
		} else if err := s.fill(k); err != nil {
			return err
		}
	}
	if err := errors.Join(errs...); err != nil {
		if len(errs) == len(s.keepers) {
			return err
		}
		s.log.Error("a keeper is missing, which is tried again", "error", err)
	}
	for i := range s.keepers {
		s.watch.Go(func() { s.replace(i) })
	}
	return nil
}

const (
	// A keeper that could not be started is tried again after that long, and ever
	// longer: memory, processes or descriptors may be short.
	minRetry, maxRetry = 100 * time.Millisecond, 10 * time.Second
)

// replace starts another keeper for each that dies, and for one that is missing.
func (s *Set) replace(i int) {
	for wait := minRetry; ; {
		s.mu.Lock()
		k := s.keepers[i]
		s.mu.Unlock()
		if k != nil {
			<-k.Dead()
		}
		err := s.renew(i)
		if errors.Is(err, errLeaving) {
			return
		}
		if err == nil {
			wait = minRetry
			continue
		}
		s.log.Error("a keeper is missing: one more death could let go of what it holds", "error", err, "again in", wait)
		select {
		case <-time.After(wait):
		case <-s.left:
			return
		}
		wait = min(2*wait, maxRetry)
	}
}

var errLeaving = errors.New("leaving")

// renew starts a keeper in the place of one that has died.
func (s *Set) renew(i int) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.leaving {
		return errLeaving
	}
	if s.keepers[i] != nil {
		s.log.Warn("a keeper has died; starting another", "socket", s.socket(i))
	}
	next, err := s.start(i)
	s.keepers[i] = next // nil after an error
	return err
}
