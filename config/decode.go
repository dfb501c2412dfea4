package config

import (
	"bytes"
	"errors"
	"fmt"
	"reflect"
	"strings"

	"github.com/pelletier/go-toml/v2"
)

// decode reads a file over what c has. Errors show the line and mark the place.
func decode(b []byte, c *Config) error {
	strict := &toml.StrictMissingError{}
	d := toml.NewDecoder(bytes.NewReader(b)).DisallowUnknownFields()
	err := d.Decode(c)
	var at *toml.DecodeError
	switch {
	case errors.As(err, &strict):
		return fmt.Errorf("unknown key:\n%s", strict.String())
	case errors.As(err, &at):
		return fmt.Errorf("\n%s", describe(at))
	}
	return err
}

// describe is go-toml's text of an error. Where that would speak of Go's types, it
// names the key and what may be written there.
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

// wanted says what kind of value a key has.
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
		return `a size such as "64MiB" or a whole number`
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
