package main

import (
	"encoding/json"
	"reflect"
	"testing"
	"time"

	"github.com/lacuna-snapshotter/lacuna/fetcher/registry"
	"github.com/lacuna-snapshotter/lacuna/snapshot/layer"
)

// fill sets each field of a struct to something.
func fill[T any](t *testing.T) T {
	t.Helper()
	var v T
	s := reflect.ValueOf(&v).Elem()
	for i := range s.NumField() {
		switch f := s.Field(i); f.Interface().(type) {
		case time.Time:
			f.Set(reflect.ValueOf(time.Unix(int64(i+1), 0).UTC()))
		case []string:
			f.Set(reflect.ValueOf([]string{"one"}))
		default:
			switch f.Kind() {
			case reflect.String:
				f.SetString(s.Type().Field(i).Name)
			case reflect.Int, reflect.Int64:
				f.SetInt(int64(i + 1))
			default:
				t.Fatalf("%s: what is a %s?", s.Type().Field(i).Name, f.Type())
			}
		}
	}
	return v
}

// fields is an object as a client reads it.
func fields(t *testing.T, v any) map[string]any {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	var m map[string]any
	if err := json.Unmarshal(b, &m); err != nil {
		t.Fatal(err)
	}
	return m
}

// TestConversionsLoseNothing compares the objects of the status socket with the
// daemon's own, whose JSON they were.
func TestConversionsLoseNothing(t *testing.T) {
	one, fallback := fill[layer.Status](t), fill[layer.Fallback](t)
	unserved, trouble := fill[layer.Unserved](t), fill[registry.Trouble](t)
	l := layersOf([]layer.Status{one}, []layer.Fallback{fallback})
	for name, pair := range map[string][2]any{
		"layer":    {one, l.Layers[0]},
		"fallback": {fallback, l.Fallbacks[0]},
		"unserved": {unserved, unservedOf([]layer.Unserved{unserved})[0]},
		"registry": {trouble, registriesOf([]registry.Trouble{trouble})[0]},
	} {
		want, got := fields(t, pair[0]), fields(t, pair[1])
		delete(got, "reads") // of an unserved layer: a method of the daemon's
		if !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %v, not %v", name, got, want)
		}
	}
	for key, v := range fields(t, layersOf(nil, nil)) {
		if v == nil {
			t.Errorf("no %s are null in JSON", key)
		}
	}
}
