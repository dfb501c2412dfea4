package config

import (
	"bytes"
	"errors"
	"fmt"
	"reflect"
	"strings"

	"github.com/pelletier/go-toml/v2"
)

// Version is the version of the file's format that this package reads. A later one
// may have other keys, or give these another meaning.
const Version = 1

// checkVersion refuses a file of another version. It comes first, since other errors
// of such a file would mislead. A file without the key is of version 1.
func checkVersion(b []byte) error {
	var v struct {
		Version any `toml:"version"`
	}
	err := toml.Unmarshal(b, &v)
	if err != nil || v.Version == nil || v.Version == int64(Version) {
		return nil //nolint:nilerr // decode describes it
	}
	if n, ok := v.Version.(int64); ok {
		return fmt.Errorf("version %d of the configuration file: this program reads version %d only", n, Version)
	}
	return fmt.Errorf("version must be the number %d, not %#v", Version, v.Version)
}

// decode overrides c with a file. It returns an error for each value of a wrong kind and
// for each unknown key, with the line. Where the file cannot be parsed, it returns only
// that error.
func decode(b []byte, c *Config) error {
	var errs []error
	for {
		err := decodeStrict(b, c)
		strict := &toml.StrictMissingError{}
		var at *toml.DecodeError
		switch {
		case errors.As(err, &strict): // which comes last, when the values have been read
			for i := range strict.Errors {
				errs = append(errs, fmt.Errorf("unknown key %s:\n%s", strings.Join(strict.Errors[i].Key(), "."), strict.Errors[i].String()))
			}
			return errors.Join(errs...)
		case !errors.As(err, &at):
			return errors.Join(append(errs, err)...)
		}
		errs = append(errs, fmt.Errorf("\n%s", describe(at)))
		var ok bool
		if b, ok = without(b, at); !ok {
			return errors.Join(errs...)
		}
	}
}

// without empties the line of a value at which the decoder stopped, so that it can go
// on. ok is false where that would change the meaning of other lines.
func without(b []byte, at *toml.DecodeError) (rest []byte, ok bool) {
	row, _ := at.Position()
	lines := bytes.SplitAfter(b, []byte("\n"))
	if row < 1 || row > len(lines) || !parses(b) {
		return nil, false
	}
	if line := bytes.TrimSpace(lines[row-1]); len(line) == 0 || line[0] == '[' {
		return nil, false
	}
	lines[row-1] = []byte("\n")
	rest = bytes.Join(lines, nil)
	return rest, parses(rest)
}

func decodeStrict(b []byte, c *Config) error {
	return toml.NewDecoder(bytes.NewReader(b)).DisallowUnknownFields().Decode(c)
}

func parses(b []byte) bool {
	var any map[string]any
	return toml.Unmarshal(b, &any) == nil
}

// describe is go-toml's text of an error. Instead of Go's types it names the key and
// what may be written there.
func describe(at *toml.DecodeError) string {
	text := at.String()
	cause := strings.TrimPrefix(at.Error(), "toml: ")
	rest, mismatch := strings.CutPrefix(cause, "cannot decode TOML ")
	if !mismatch {
		return text
	}
	got, _, _ := strings.Cut(rest, " into ")
	key := strings.Join(at.Key(), ".")
	return strings.Replace(text, cause, fmt.Sprintf("%s must be %s, not %s", key, wanted(at.Key()), article(got)), 1)
}

// wanted describes the kind of value that a key has.
func wanted(key toml.Key) string {
	t := reflect.TypeFor[Config]()
	for _, part := range key {
		if t.Kind() != reflect.Struct {
			break
		}
		for f := range t.Fields() {
			if f.Tag.Get("toml") == part {
				t = f.Type
				break
			}
		}
	}
	switch t {
	case reflect.TypeFor[Duration]():
		return `a duration such as "30s"`
	case reflect.TypeFor[Size]():
		return `a size such as "64MiB"`
	}
	switch t.Kind() {
	case reflect.Struct:
		return "a table"
	case reflect.Slice:
		return "a list of strings"
	case reflect.Int:
		return "a whole number"
	case reflect.Bool:
		return "true or false"
	}
	return "a string"
}

func article(noun string) string {
	if strings.ContainsRune("aeiou", rune(noun[0])) {
		return "an " + noun
	}
	return "a " + noun
}
