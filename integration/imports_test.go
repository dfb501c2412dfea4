package integration

import (
	"os/exec"
	"strings"
	"testing"
)

// allowed are the directions in which packages may import each other: those of
// ARCHITECTURE.md. A package may import what is listed and what lies below it.
var allowed = map[string][]string{
	"config":                        {},
	"erofs":                         {},
	"fetcher/layer":                 {"erofs", "fetcher/inflate"},
	"fetcher/inflate":               {},
	"fetcher/registry":              {},
	"fetcher/predict":               {"erofs"},
	"fetcher/index":                 {"erofs", "fetcher/inflate", "fetcher/layer", "fetcher/predict", "fetcher/registry"},
	"ondemand":                      {"internal/fault"},
	"ondemand/fanotify":             {"erofs", "internal/descriptor", "internal/fault", "ondemand", "ondemand/journal"},
	"ondemand/fusefile":             {"erofs", "internal/descriptor", "internal/fault", "ondemand", "ondemand/journal"},
	"ondemand/journal":              {"internal/descriptor"},
	"ondemand/cachefiles":           {"erofs", "internal/descriptor", "ondemand"},
	"ondemand/keeper":               {"internal/descriptor"},
	"snapshot":                      {"erofs", "fetcher/index", "fetcher/layer", "fetcher/registry", "ondemand"},
	"internal/hostcheck":            {},
	"internal/descriptor":           {},
	"internal/fault":                {},
	"internal/liblog":               {},
	"internal/procs":                {},
	"internal/version":              {},
	"internal/statusapi":            {"fetcher/registry", "ondemand", "snapshot"},
	"fetcher/layertest":             {},
	"fetcher/registry/registrytest": {},
	"ondemand/transporttest":        {"erofs", "fetcher/layertest", "internal/hostcheck", "ondemand"},
	"integration/images/pause":      {},
	"integration/images/probe":      {},
	"integration/images/reader":     {},
	"integration/harness":           {"ondemand/keeper"},
	"integration/demo":              {"integration/harness"},
	"cmd/lacunactl":                 nil, // commands may import all
	"cmd/lacuna-snapshotter":        nil,
	"integration":                   nil,
	"integration/bench":             nil,
	"integration/metamorphic":       {},
	"integration/chaos":             {"integration/harness", "internal/procs", "internal/statusapi"},
	"integration/vm":                {"integration/harness"},
	"integration/vm/init":           {},
}

func TestImportDirections(t *testing.T) {
	const module = "github.com/lacuna-snapshotter/lacuna/"
	out, err := exec.Command("go", "list", "-f", "{{.ImportPath}}:{{join .Imports \" \"}}", module+"...").Output()
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(out)) {
		path, imports, _ := strings.Cut(strings.TrimSpace(line), ":")
		path = strings.TrimPrefix(path, module)
		may, known := allowed[path]
		if !known {
			t.Errorf("package %s has no place in the map of ARCHITECTURE.md", path)
			continue
		}
		if may == nil {
			continue
		}
		for imported := range strings.FieldsSeq(imports) {
			ours, ok := strings.CutPrefix(imported, module)
			if !ok {
				continue
			}
			found := false
			for _, m := range may {
				found = found || m == ours
			}
			if !found {
				t.Errorf("%s imports %s", path, ours)
			}
		}
	}
}
