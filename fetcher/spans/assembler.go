package spans

import "crypto/sha256"

// assembler lays stream bytes out as the blob has them and verifies spans.
type assembler struct {
	m       *Map
	next    int64 // span in buf
	last    int64
	put     func(int64, []byte) error
	buf     []byte
	section int // first section that may have bytes to come
	ready   bool
}

// stream takes bytes of the stream that start at off. Calls are in order.
func (a *assembler) stream(off StreamOffset, data []byte) error {
	end := off + StreamOffset(len(data))
	if !a.ready {
		from, _ := a.m.span(a.next)
		a.section, a.ready = a.m.sectionAt(from), true
	}
	for a.next < a.last && a.section < len(a.m.Sections) {
		e := a.m.Sections[a.section]
		lo, hi := a.m.span(a.next)
		if e.Blob >= hi {
			if err := a.finish(); err != nil {
				return err
			}
			continue
		}
		// The part of the section in this span, in the stream's terms.
		from := e.Stream + StreamOffset(max(0, lo-e.Blob))
		to := e.Stream + StreamOffset(min(e.Len, int64(hi-e.Blob)))
		if from >= end {
			return nil
		}
		if to > off {
			src := data[max(0, from-off):min(int64(to-off), int64(len(data)))]
			at := e.Blob + BlobOffset(max(from, off)-e.Stream) - lo
			copy(a.buf[at:], src)
		}
		if to > end {
			return nil
		}
		if to == e.Stream+StreamOffset(e.Len) {
			a.section++
		} else if err := a.finish(); err != nil {
			return err
		}
	}
	return nil
}

// restart forgets what it has of the span in buf.
func (a *assembler) restart() {
	clear(a.buf)
	a.ready = false
}

// finishAll finishes the spans that no more bytes belong to.
func (a *assembler) finishAll() error {
	for a.next < a.last {
		if err := a.finish(); err != nil {
			return err
		}
	}
	return nil
}

// finish verifies the span in buf and hands it on.
func (a *assembler) finish() error {
	from, to := a.m.span(a.next)
	data := a.buf[:to-from]
	if got := Digest(sha256.Sum256(data)); got != a.m.Digests[a.next] {
		return &DigestError{Layer: a.m.Layer.String(), Span: a.next, From: from, To: to, Got: got, Want: a.m.Digests[a.next]}
	}
	if err := a.put(a.next, data); err != nil {
		return err
	}
	clear(a.buf)
	a.next++
	return nil
}
