package ondemand

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"
)

// Options bound what an Engine does at once. Zero values mean the defaults.
type Options struct {
	Fetches    int           // places for fetches on the node; 16. Each group has one besides
	Background int           // of these, at most so many for what no reader waits for; 4
	PerGroup   int           // of these, at most so many for one group; three quarters
	MaxFetch   int64         // bytes of blob in one fetch; 4 MiB
	Timeout    time.Duration // how long a fetch may take once it has a place; 2 minutes
	BootID     string        // the kernel's, where empty; tests set it
}

func (o Options) withDefaults() (Options, error) {
	if o.Fetches == 0 {
		o.Fetches = 16
	}
	if o.Background == 0 {
		o.Background = max(1, o.Fetches/4)
	}
	if o.PerGroup == 0 {
		o.PerGroup = max(1, o.Fetches*3/4)
	}
	if o.MaxFetch == 0 {
		o.MaxFetch = 4 << 20
	}
	if o.Timeout == 0 {
		o.Timeout = 2 * time.Minute
	}
	if o.BootID == "" {
		var err error
		if o.BootID, err = BootID(); err != nil {
			return o, err
		}
	}
	if o.Fetches < 1 || o.Background < 0 || o.Background > o.Fetches || o.PerGroup < 1 || o.PerGroup > o.Fetches || o.MaxFetch < 1 {
		return o, fmt.Errorf("fill engine: %d fetches, %d in the background, %d for a group, %d bytes each", o.Fetches, o.Background, o.PerGroup, o.MaxFetch)
	}
	return o, nil
}

// Source brings verified spans of one blob. It may be called from many goroutines.
// A source that knows more than that is an [Advisor] or an [Opener] as well.
type Source interface {
	// Fetch brings the spans [first, last) in any order. It calls put for each
	// with its verified bytes, which put does not keep, stops at the first
	// error, and returns soon after ctx ends. Where it waits before it tries
	// again, it does so in Sleep.
	Fetch(ctx context.Context, first, last int64, put func(span int64, data []byte) error) error
}

// Advisor is a Source that knows which spans are better fetched together. Its methods
// answer from memory, without I/O: a blob calls them with its lock held.
type Advisor interface {
	// Grow widens [first, last) to what is better fetched with it than later: to
	// what costs nothing more and, where a reader has missed it, to what is likely
	// to be wanted next. The blob may not follow: asking changes nothing. ok is
	// false where the source cannot say before Open.
	Grow(first, last int64, missed bool) (from, to int64, ok bool)
	// Missed counts the fetch that a reader's miss of [first, last) has begun.
	Missed(first, last int64)
}

// Opener is a Source that has I/O to do before it can advise, such as reading an index.
// Where Grow was not ok, the fetch calls Open first, once it has a place, and then asks
// again. Open returns soon after ctx ends.
type Opener interface {
	Open(ctx context.Context) error
}

// Engine is a node's blobs and the budget they share.
type Engine struct {
	Table
	opts   Options
	budget *budget
	disk   disk

	lastWait atomic.Int64 // when a reader last waited, in Unix nanoseconds

	demand, ahead, failed atomic.Int64 // fetches
}

// Stats counts fetches since the start.
type Stats struct {
	Demand int64 `json:"forReaders"`
	Ahead  int64 `json:"ahead"`
	Failed int64 `json:"failed"`
}

// Stats returns the counts.
func (e *Engine) Stats() Stats {
	return Stats{e.demand.Load(), e.ahead.Load(), e.failed.Load()}
}

// Quiet is how long no reader has waited for a fill.
func (e *Engine) Quiet() time.Duration { return time.Since(time.Unix(0, e.lastWait.Load())) }

// New makes an engine with no blobs.
func New(opts Options) (*Engine, error) {
	opts, err := opts.withDefaults()
	if err != nil {
		return nil, err
	}
	return &Engine{opts: opts, budget: newBudget(opts), disk: hostDisk{}}, nil
}

// BlobConfig describes a blob to open.
type BlobConfig struct {
	Key      Key
	Path     string // of the cache file; the records lie beside it
	Size     int64  // bytes
	SpanSize int64  // bytes
	Source   Source
	// Group is what the blob shares a budget of fetches with: all that fails or
	// is slow together, as the registry's host.
	Group string
	// Backing, where it is not nil, takes the bytes in place of the file at Path.
	// The blob closes it.
	Backing Backing
}

func (c BlobConfig) spans() int64 { return (c.Size + c.SpanSize - 1) / c.SpanSize }

// Open opens a blob and its backing. A cache file is made where it is missing,
// and is open for reading and writing until Close: a transport that marks it
// does so after Open, so that our own writes go unmarked. A file that is there
// and cannot be the blob's is a ForeignFileError.
func (e *Engine) Open(c BlobConfig) (*Blob, error) {
	if c.Size < 0 || c.SpanSize <= 0 {
		return nil, fmt.Errorf("blob %s: %d bytes in spans of %d", c.Key, c.Size, c.SpanSize)
	}
	if err := e.reserve(c.Key); err != nil {
		if c.Backing != nil {
			err = errors.Join(err, c.Backing.Close())
		}
		return nil, err
	}
	if c.Backing == nil {
		backing, err := openFile(e.disk, c, e.opts.BootID)
		if err != nil {
			e.free(c.Key)
			return nil, fmt.Errorf("open blob %s: %w", c.Key, err)
		}
		c.Backing = backing
	}
	b := &Blob{
		key: c.Key, path: c.Path, size: c.Size, spanSize: c.SpanSize,
		spans: c.spans(), source: c.Source, group: c.Group,
		engine: e, backing: c.Backing, pending: map[int64]*pending{},
		completed: make(chan struct{}),
	}
	b.Refresh()
	if file, ok := c.Backing.(*fileBacking); ok && b.Complete() && file.allDurable() {
		b.durable.Store(file.name() == nil) // else Sync says why
	}
	e.set(c.Key, b)
	return b, nil
}

// Sync makes what is filled survive a loss of power, one blob after the other,
// until ctx ends. It should be called often, so that most of it survives a reboot, and
// a disk that fails to write is noticed early.
func (e *Engine) Sync(ctx context.Context) error {
	var errs []error
	for _, b := range e.All() {
		if ctx.Err() != nil {
			return errors.Join(append(errs, ctx.Err())...)
		}
		if err := b.Sync(); err != nil && !errors.Is(err, ErrClosed) {
			errs = append(errs, fmt.Errorf("sync blob %s: %w", b.Key(), err))
		}
	}
	return errors.Join(errs...)
}
