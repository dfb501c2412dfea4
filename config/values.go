package config

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/pelletier/go-toml/v2/unstable"
)

// Duration is written as in Go, such as "1m30s". A number without a unit is refused. It
// is a struct because go-toml stores a number directly in a type that is an integer in
// Go: 30 would be 30 nanoseconds.
type Duration struct{ time.Duration }

// UnmarshalText implements encoding.TextUnmarshaler.
func (d *Duration) UnmarshalText(b []byte) error {
	v, err := time.ParseDuration(string(b))
	switch {
	case err != nil && number(b):
		return refuse(b, "%s has no unit: write %q for seconds", b, string(b)+"s")
	case err != nil:
		return refuse(b, "%q is not a duration: write %q, %q or %q", b, "30s", "1m30s", "100ms")
	case v < 0:
		return refuse(b, "negative duration %q", b)
	}
	d.Duration = v
	return nil
}

// MarshalText implements encoding.TextMarshaler.
func (d Duration) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// Size is a number of bytes, written with a unit: "64MiB" or "10GB". A whole number
// without a unit is bytes.
type Size int64

// units of sizes, the longest names first.
var units = []struct {
	name  string
	bytes int64
}{
	{"KiB", 1 << 10},
	{"MiB", 1 << 20},
	{"GiB", 1 << 30},
	{"TiB", 1 << 40},
	{"kB", 1e3},
	{"KB", 1e3},
	{"MB", 1e6},
	{"GB", 1e9},
	{"TB", 1e12},
	{"B", 1},
}

// String is the size in the unit that makes the smallest whole number of it.
func (s Size) String() string {
	n, name := int64(s), "B"
	for _, u := range units {
		if whole := int64(s) / u.bytes; int64(s)%u.bytes == 0 && whole != 0 && whole < n {
			n, name = whole, u.name
		}
	}
	return strconv.FormatInt(n, 10) + name
}

// MarshalText implements encoding.TextMarshaler.
func (s Size) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (s *Size) UnmarshalText(b []byte) error {
	text, unit := string(b), 1.0
	for _, u := range units {
		if rest, ok := strings.CutSuffix(text, u.name); ok {
			text, unit = strings.TrimSpace(rest), float64(u.bytes)
			break
		}
	}
	// ParseFloat also accepts words and signs; a size has digits and a point.
	v, err := strconv.ParseFloat(text, 64)
	if err != nil || !number([]byte(text)) || v*unit != math.Trunc(v*unit) || v*unit >= 1<<62 {
		return refuse(b, "%q is not a size: write %q or %q", b, "64MiB", "10GB")
	}
	*s = Size(v * unit)
	return nil
}

// number reports whether text is digits, with at most a point and a minus sign.
func number(b []byte) bool {
	text := strings.Replace(strings.TrimPrefix(string(b), "-"), ".", "", 1)
	return text != "" && strings.Trim(text, "0123456789") == ""
}

// refuse is an error about a value. go-toml finds the line of a value that is not a
// string by the address of its bytes, which are a part of the document.
func refuse(value []byte, format string, args ...any) error {
	return &unstable.ParserError{Highlight: value, Message: fmt.Sprintf(format, args...)}
}
