package hold

import "slices"

// shelf holds things under labels, in the order in which they first came.
type shelf[T any] []labelled[T]

type labelled[T any] struct {
	label string
	thing T
}

func (s shelf[T]) find(label string) int {
	return slices.IndexFunc(s, func(l labelled[T]) bool { return l.label == label })
}

// put takes a thing, in place of the one that was there, which it returns.
func (s *shelf[T]) put(label string, thing T) (old T, replaced bool) {
	if i := s.find(label); i >= 0 {
		old, (*s)[i].thing = (*s)[i].thing, thing
		return old, true
	}
	*s = append(*s, labelled[T]{label, thing})
	return old, false
}

// take removes and returns what is there under a label.
func (s *shelf[T]) take(label string) (thing T, ok bool) {
	i := s.find(label)
	if i < 0 {
		return thing, false
	}
	thing = (*s)[i].thing
	*s = slices.Delete(*s, i, i+1)
	return thing, true
}
