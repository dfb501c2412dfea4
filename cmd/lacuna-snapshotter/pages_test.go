package main

import (
	"fmt"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/lacuna-snapshotter/lacuna/internal/pagetest"
	"github.com/lacuna-snapshotter/lacuna/internal/statusapi"
)

func TestCommandsPage(t *testing.T) {
	pagetest.Section(t, "../../docs/commands.md", "lacuna-snapshotter", pagetest.Commands(command()))
}

// TestMetricsPage holds docs/metrics.md to what a collector of the daemon's status gets.
func TestMetricsPage(t *testing.T) {
	r := prometheus.NewPedanticRegistry()
	r.MustRegister(collector{func() statusapi.Status {
		return statusapi.Status{Anchored: true, Keepers: 3, Evicted: 7, Allocated: 11, Fetches: statusapi.Fetches{Ahead: 5}}
	}})
	families, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	if len(families) != len(metrics) {
		t.Errorf("%d metrics of %d", len(families), len(metrics))
	}
	got := map[string]float64{}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			name := f.GetName()
			for _, l := range m.GetLabel() {
				name += "," + l.GetValue()
			}
			got[name] = m.GetGauge().GetValue() + m.GetCounter().GetValue()
		}
	}
	for name, want := range map[string]float64{
		"lacuna_anchored": 1, "lacuna_keepers": 3, "lacuna_layers,evicted": 7, "lacuna_layers,filling": 0,
		"lacuna_cache_bytes": 11, "lacuna_fetches_total,ahead": 5,
	} {
		if v, ok := got[name]; !ok || v != want {
			t.Errorf("%s is %v, %v, not %v", name, v, ok, want)
		}
	}
	var b strings.Builder
	b.WriteString("| metric | type | labels | what it is |\n|---|---|---|---|\n")
	for _, m := range metrics {
		kind, labels := "gauge", ""
		if m.kind == counter {
			kind = "counter"
		}
		var values []string
		for _, s := range m.read(&statusapi.Status{}) {
			values = append(values, "`"+s.label+"`")
		}
		if m.label != "" {
			labels = fmt.Sprintf("`%s`: %s", m.label, strings.Join(values, ", "))
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s |\n", m.name, kind, labels, m.help)
	}
	pagetest.Section(t, "../../docs/metrics.md", "metrics", b.String())
}
