package metamorphic

import (
	"math/rand/v2"
)

// operation is one that a goroutine may do. Its random numbers are the
// goroutine's own.
type operation struct {
	weight int
	do     func(s *sequence, r *rand.Rand)
}

var operations = []operation{
	{10, (*sequence).pull},
	{10, (*sequence).start},
	{8, (*sequence).readSome},
	{4, (*sequence).readAll},
	{3, (*sequence).write},
	{3, (*sequence).hold},
	{3, (*sequence).reread},
	{2, (*sequence).commit},
	{3, (*sequence).mounts},
	{7, (*sequence).stop},
	{4, (*sequence).dropImage},
	{5, (*sequence).collect},
	{3, (*sequence).cleanup},
	{4, (*sequence).evict},
	{3, (*sequence).fill},
	{2, (*sequence).reindex},
	{2, (*sequence).probe},
	{1, (*sequence).trouble},
}

// operate does one, chosen at random by the weights.
func (s *sequence) operate(r *rand.Rand) {
	total := 0
	for _, o := range operations {
		total += o.weight
	}
	n := r.IntN(total)
	for _, o := range operations {
		if n -= o.weight; n < 0 {
			o.do(s, r)
			return
		}
	}
}
