package main

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/lacuna-snapshotter/lacuna/config"
)

func TestWarnings(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "config.json")
	c := &config.Config{}
	c.Registry.DockerConfig = path
	if err := readableJSON(path); err != nil {
		t.Errorf("a missing file: %v", err)
	}
	for text, good := range map[string]bool{`{"auths":{}}`: true, `{"auths":`: false, `[]`: false} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := readableJSON(path); (err == nil) != good {
			t.Errorf("%s: %v", text, err)
		}
		if !good && len(warnings(c)) == 0 {
			t.Error("warnings does not report it")
		}
	}
	links := map[string]string{"a": "mnt:[1]", "b": "mnt:[2]", "c": "mnt:[1]"}
	for name, target := range links {
		if err := os.Symlink(target, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	at := func(name string) string { return filepath.Join(dir, name) }
	if sameMounts(at("a"), at("b")) == nil || sameMounts(at("a"), at("c")) != nil || sameMounts(at("a"), at("none")) != nil {
		t.Error("mount namespaces")
	}
}
