package hold

import (
	"os"
	"slices"
)

// holder holds duplicates of kernel descriptors under labels while no daemon runs.
// There are three kinds: keeper processes, the service manager's descriptor store,
// and the anchor.
type holder interface {
	// hold has it hold a duplicate of a descriptor under a label, in place of what
	// it held under that label.
	hold(label string, fd int) error
	// release has it close what it holds under a label. A label that it does not
	// hold is no error.
	release(label string) error
	// adopt returns duplicates of all that it holds, which are the caller's, in the
	// order in which their labels were first held. It holds on to its own.
	adopt() ([]held, error)
	// leave ends the daemon's use of it. It holds on.
	leave() error
	// end has it release everything and, where it is a process, ends it.
	end() error
}

// held is a duplicate of what is held under a label.
type held struct {
	label string
	file  *os.File
}

// shelf holds things under labels, in the order in which they first came.
type shelf[T any] []labelled[T]

type labelled[T any] struct {
	label string
	thing T
}

func (s shelf[T]) find(label string) int {
	return slices.IndexFunc(s, func(l labelled[T]) bool { return l.label == label })
}

// put adds a thing, in place of the one under that label, which it returns.
func (s *shelf[T]) put(label string, thing T) (old T, replaced bool) {
	if i := s.find(label); i >= 0 {
		old, (*s)[i].thing = (*s)[i].thing, thing
		return old, true
	}
	*s = append(*s, labelled[T]{label, thing})
	return old, false
}

// remove removes and returns the thing under a label.
func (s *shelf[T]) remove(label string) (thing T, ok bool) {
	i := s.find(label)
	if i < 0 {
		return thing, false
	}
	thing = (*s)[i].thing
	*s = slices.Delete(*s, i, i+1)
	return thing, true
}
