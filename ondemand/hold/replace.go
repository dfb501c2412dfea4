package hold

import (
	"errors"
	"time"
)

// complete starts the keepers that are missing, or have died since they were adopted
// from. One that cannot be started is tried again later if there is another keeper.
func (h *Holders) complete() error {
	var errs []error
	for i, k := range h.keepers {
		if k != nil {
			err := h.fill(k)
			if err == nil {
				continue
			}
			if !errors.Is(err, errDead) {
				return err
			}
			h.log.Warn("a keeper has died; another is started", "socket", h.socket(i))
			h.silent[i] = k
		}
		var err error
		if h.keepers[i], err = h.start(i); err != nil {
			errs = append(errs, err)
		}
	}
	if err := errors.Join(errs...); err != nil {
		if len(errs) == len(h.keepers) {
			return err
		}
		h.log.Error("a keeper could not be started; starting it is tried again", "error", err)
	}
	for i := range h.keepers {
		h.watch.Go(func() { h.replace(i) })
	}
	return nil
}

const (
	// A keeper that could not be started is tried again after that long, and ever
	// longer: memory, processes or descriptors may be short.
	minRetry, maxRetry = 100 * time.Millisecond, 10 * time.Second
)

// replace starts another keeper when one dies, and one that is missing.
func (h *Holders) replace(i int) {
	for wait := minRetry; ; {
		h.mu.Lock()
		k := h.keepers[i]
		h.mu.Unlock()
		if k != nil {
			<-k.dead
		}
		err := h.renew(i)
		if errors.Is(err, errLeaving) {
			return
		}
		if err == nil {
			wait = minRetry
			continue
		}
		h.log.Error("a keeper could not be started: fewer processes hold the descriptors than should", "error", err, "again in", wait)
		select {
		case <-time.After(wait):
		case <-h.left:
			return
		}
		wait = min(2*wait, maxRetry)
	}
}

var errLeaving = errors.New("leaving")

// renew starts a keeper in the place of one that has died.
func (h *Holders) renew(i int) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.leaving {
		return errLeaving
	}
	if k := h.keepers[i]; k != nil {
		h.log.Warn("a keeper has died; another is started", "socket", h.socket(i))
		h.silent[i] = k
	}
	next, err := h.start(i)
	h.keepers[i] = next // nil after an error
	return err
}

// start starts a keeper that holds what is held. The one that it replaces, which held no
// more, ends now should it not be dead.
func (h *Holders) start(i int) (*keeper, error) {
	k, err := startKeeper(h.socket(i), h.program.Keeper...)
	if err != nil {
		return nil, err
	}
	if err := h.fill(k); err != nil {
		return nil, errors.Join(err, k.end())
	}
	if old := h.silent[i]; old != nil {
		old.dismiss()
		h.silent[i] = nil
	}
	return k, nil
}

// fill gives a keeper all that is held, in order: if the daemon dies meanwhile, the
// keeper has what was held first.
func (h *Holders) fill(k *keeper) error {
	for _, own := range h.own {
		if err := k.hold(own.label, own.thing); err != nil {
			return err
		}
	}
	return nil
}
