package hostcheck

import (
	"errors"
	"testing"

	"github.com/lacuna-snapshotter/lacuna/internal/feature"
)

func TestMaySkip(t *testing.T) {
	old, future := feature.Version{Major: 2, Minor: 6}, feature.Version{Major: 99}
	for name, tc := range map[string]struct {
		f    *feature.Feature
		err  error
		want bool
	}{
		"a later kernel has it":    {&feature.Feature{Since: future}, feature.ErrMissing, true},
		"an earlier kernel had it": {&feature.Feature{Since: old, Until: old}, feature.ErrMissing, true},
		"this kernel should":       {&feature.Feature{Since: old}, feature.ErrMissing, false},
		"the probe could not tell": {&feature.Feature{Since: future}, errors.New("not permitted"), false},
	} {
		if got, why := maySkip(tc.f, tc.err); got != tc.want {
			t.Errorf("%s: %v, %s", name, got, why)
		}
	}
}
