package registry

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"
)

// BadBytesError says that the bytes of content are wrong wherever they are read.
type BadBytesError struct {
	Repo  string
	Hosts []string // that gave them
	Err   error    // the verification's
}

func (e *BadBytesError) Error() string {
	return fmt.Sprintf("%v (from %s of %s)", e.Err, strings.Join(e.Hosts, ", "), e.Repo)
}

// Unwrap returns the verification's error.
func (e *BadBytesError) Unwrap() error { return e.Err }

// distrusted are the hosts that gave wrong bytes of some content: they are asked after
// all others, for a time in which a mirror may have repaired what it keeps.
type distrusted struct {
	mu   sync.Mutex
	last map[string]time.Time // by base URL
}

const distrust = 10 * time.Minute

// since is when a host gave wrong bytes last, or zero.
func (l *distrusted) since(key string) time.Time {
	l.mu.Lock()
	defer l.mu.Unlock()
	if t := l.last[key]; time.Since(t) < distrust {
		return t
	}
	return time.Time{}
}

func (l *distrusted) add(key string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.last == nil {
		l.last = map[string]time.Time{}
	}
	l.last[key] = time.Now()
}

// Reject says that the bytes read so far are not those they should be. It returns
// nil where another host may have others: then the caller reads them again, with
// another reader. Otherwise it returns a [*BadBytesError] that wraps cause.
func (r *contentReader) Reject(cause error) error {
	of := r.content
	y, timer := of.repo.client.troubles.begin(of.repo)
	timer.Stop()
	for _, h := range r.asked {
		of.distrusted.add(h.key)
		of.repo.client.troubles.set(y, of.repo.registry, fmt.Sprintf("%s gave wrong bytes: %v", h.key, cause), false)
	}
	of.target.Store(nil)
	set, err := of.repo.client.hostsOf(of.repo.registry)
	if err != nil {
		return err
	}
	var bad []string
	for _, h := range set.hosts {
		if !h.Capabilities.Has(contentCapability) {
			continue
		}
		if of.distrusted.since(h.key).IsZero() {
			return nil
		}
		bad = append(bad, h.key)
	}
	for _, h := range r.asked {
		if !slices.Contains(bad, h.key) {
			bad = append(bad, h.key)
		}
	}
	return &BadBytesError{Repo: of.repo.Name(), Hosts: bad, Err: cause}
}
