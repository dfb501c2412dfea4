package spans

import "sync"

// What a fetch brings with the spans that it is for. A round trip costs more than some
// bytes, and bytes that a later fetch would pass again cost twice:
//
//   - What lies between the checkpoint before the spans and the spans, a fetch passes
//     anyway. It is always brought.
//   - A reader's second miss in a file, and each one after it, brings what lies between
//     the spans and the next checkpoint, and ever more of the file behind them: large
//     libraries are read all over. The first miss in a file is often the only one, and
//     the rest of the segment is then not worth its bytes.

const (
	calmMisses = 1  // in a file, that say nothing yet
	firstAhead = 2  // spans of the file to bring with the next miss, doubled with each
	mostAhead  = 64 // spans
	mostFiles  = 4096
)

// Grow widens [first, last) to what is better fetched with it than later. It counts
// nothing: see Missed. ok is always true.
func (l *Layer) Grow(first, last int64, missed bool) (from, to int64, ok bool) {
	behind := false
	if missed {
		file, end := l.Map.File(last - 1)
		n := l.misses.of(file) + 1 // with this one
		last = min(end, last+ahead(n))
		behind = n > calmMisses
	}
	from, to = l.Widen(first, last, behind)
	return from, to, true
}

// Missed counts a reader's miss of [first, last), for which it is fetched.
func (l *Layer) Missed(_, last int64) {
	file, _ := l.Map.File(last - 1)
	l.misses.add(file)
}

// ahead is how many spans more to bring with the n-th miss of a file.
func ahead(n int) int64 {
	if n <= calmMisses {
		return 0
	}
	return min(mostAhead, int64(firstAhead)<<min(n-calmMisses-1, 8))
}

// misses counts readers' misses by file.
type misses struct {
	mu    sync.Mutex
	count map[int64]int // by the file's first span
}

func (m *misses) of(file int64) int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.count[file]
}

func (m *misses) add(file int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.count == nil || len(m.count) > mostFiles {
		m.count = map[int64]int{}
	}
	m.count[file]++
}

// Widen widens a range of spans to the checkpoint before it and, where behind is set,
// to the one behind it, with the span that reaches over that one.
func (l *Layer) Widen(first, last int64, behind bool) (from, to int64) {
	m := l.Map
	lo, _ := m.span(first)
	_, hi := m.span(last - 1)
	start, end, ok := m.streamRange(lo, hi)
	if !ok {
		return first, last
	}
	at := m.Checkpoints[m.checkpointBefore(start)].Stream
	for first > 0 {
		lo, hi := m.span(first - 1)
		s, _, ok := m.streamRange(lo, hi)
		if !ok || s < at {
			break
		}
		first--
	}
	if !behind {
		return first, last
	}
	next := StreamOffset(m.StreamSize)
	if ck := m.checkpointBefore(end-1) + 1; ck < len(m.Checkpoints) {
		next = m.Checkpoints[ck].Stream
	}
	for last < m.Spans() {
		lo, hi := m.span(last)
		s, _, ok := m.streamRange(lo, hi)
		if !ok || s >= next {
			break
		}
		last++
	}
	return first, last
}
