package main

import (
	"net/http"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/lacuna-snapshotter/lacuna/internal/statusapi"
)

// metric is one of the daemon's metrics, read from its status.
type metric struct {
	name  string
	kind  prometheus.ValueType
	help  string
	label string // of the samples, if they have one
	read  func(*statusapi.Status) []sample
}

type sample struct {
	label string // value of the metric's label
	value int64
}

// one is a metric without a label.
func one(read func(*statusapi.Status) int64) func(*statusapi.Status) []sample {
	return func(st *statusapi.Status) []sample { return []sample{{"", read(st)}} }
}

const (
	counter = prometheus.CounterValue
	gauge   = prometheus.GaugeValue
)

// metrics are all of the daemon's own. docs/metrics.md is generated from them.
var metrics = []metric{
	{"lacuna_layers", gauge, "Layers by state.", "state", func(st *statusapi.Status) []sample {
		return []sample{
			{"filling", int64(st.Filling)},
			{"complete", int64(st.Complete)},
			{"quarantined", int64(st.Quarantined)},
			{"evicted", int64(st.Evicted)},
			{"leaving", int64(st.Leaving)},
		}
	}},
	{"lacuna_fallbacks", gauge, "Layers that were left to containerd, which unpacks them.", "", one(func(st *statusapi.Status) int64 { return int64(st.Fallbacks) })},
	{"lacuna_unserved_layers", gauge, "Layers whose holes read as zeros or EIO while no daemon and no holder was alive, with containers that still run.", "", one(func(st *statusapi.Status) int64 { return int64(len(st.Unserved)) })},
	{"lacuna_fetches_total", counter, "Requests to registries for bytes of layers, by purpose: a reader waits, or ahead of readers.", "for", func(st *statusapi.Status) []sample {
		return []sample{{"readers", st.Fetches.Demand}, {"ahead", st.Fetches.Ahead}}
	}},
	{"lacuna_fetch_failures_total", counter, "Fetches that failed.", "", one(func(st *statusapi.Status) int64 { return st.Fetches.Failed })},
	{"lacuna_registry_bytes_total", counter, "Bytes of content read from registries.", "", one(func(st *statusapi.Status) int64 { return st.BytesFetched })},
	{"lacuna_registries_in_trouble", gauge, "Registries whose last request failed.", "", one(func(st *statusapi.Status) int64 { return int64(len(st.Registries)) })},
	{"lacuna_cache_bytes", gauge, "Bytes of disk that layers take.", "", one(func(st *statusapi.Status) int64 { return st.Allocated })},
	{"lacuna_keepers", gauge, "Keeper processes that hold the transport's descriptors besides the daemon.", "", one(func(st *statusapi.Status) int64 { return int64(st.Keepers) })},
	{"lacuna_anchored", gauge, "1 where readers wait even if the daemon and all keepers are killed at once, else 0.", "", one(func(st *statusapi.Status) int64 {
		if st.Anchored {
			return 1
		}
		return 0
	})},
}

func (m metric) desc() *prometheus.Desc {
	var labels []string
	if m.label != "" {
		labels = []string{m.label}
	}
	return prometheus.NewDesc(m.name, m.help, labels, nil)
}

// collector reads the status once for all metrics.
type collector struct{ status func() statusapi.Status }

// metricsHandler serves the daemon's metrics, and those of the Go runtime and the
// process.
func metricsHandler(status func() statusapi.Status) http.Handler {
	r := prometheus.NewRegistry()
	r.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}), collector{status})
	return promhttp.HandlerFor(r, promhttp.HandlerOpts{})
}

// Describe implements prometheus.Collector.
func (collector) Describe(ch chan<- *prometheus.Desc) {
	for _, m := range metrics {
		ch <- m.desc()
	}
}

// Collect implements prometheus.Collector.
func (c collector) Collect(ch chan<- prometheus.Metric) {
	st := c.status()
	for _, m := range metrics {
		for _, s := range m.read(&st) {
			var labels []string
			if m.label != "" {
				labels = []string{s.label}
			}
			ch <- prometheus.MustNewConstMetric(m.desc(), m.kind, float64(s.value), labels...)
		}
	}
}
