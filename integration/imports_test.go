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
	"fetcher":                       {"erofs", "fetcher/inflate"},
	"fetcher/inflate":               {},
	"fetcher/registry":              {},
	"fetcher/predict":               {"erofs"},
	"fetcher/index":                 {"erofs", "fetcher", "fetcher/inflate", "fetcher/predict", "fetcher/registry"},
	"ondemand":                      {"internal/descriptor", "internal/fault"},
	"ondemand/fanotify":             {"erofs", "internal/descriptor", "internal/fault", "internal/kernel", "ondemand", "ondemand/hold/inflight"},
	"ondemand/fuse":                 {"erofs", "internal/descriptor", "internal/fault", "internal/kernel", "ondemand", "ondemand/hold/inflight"},
	"ondemand/hold/inflight":        {"internal/descriptor"},
	"ondemand/cachefiles":           {"erofs", "internal/descriptor", "ondemand"},
	"ondemand/hold/lock":            {"internal/descriptor"},
	"ondemand/hold/socket":          {"internal/descriptor", "ondemand/hold/lock"},
	"ondemand/hold":                 {"internal/descriptor", "ondemand/hold/socket"},
	"snapshot":                      {"snapshot/dirs", "snapshot/layer"},
	"snapshot/dirs":                 {},
	"snapshot/layer":                {"erofs", "fetcher", "fetcher/index", "fetcher/registry", "ondemand", "snapshot/dirs"},
	"snapshot/snapshottest":         nil,
	"internal/hostcheck":            {"internal/feature"},
	"internal/feature":              {},
	"internal/kernel":               {"erofs", "internal/feature"},
	"internal/descriptor":           {},
	"internal/fault":                {},
	"internal/liblog":               {},
	"internal/pagetest":             {},
	"internal/procs":                {},
	"internal/version":              {},
	"internal/statusapi":            {},
	"fetcher/layertest":             {},
	"fetcher/registry/registrytest": {},
	"ondemand/transporttest":        {"erofs", "fetcher/layertest", "internal/descriptor", "internal/hostcheck", "ondemand"},
	"integration/images/pause":      {},
	"integration/images/probe":      {},
	"integration/images/reader":     {},
	"integration/harness":           {"ondemand/hold"},
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
