package main

import (
	"net/http"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// metricsHandler serves the daemon's metrics, and those of the Go runtime and the
// process. docs/metrics.md lists the daemon's.
func metricsHandler(s *status) http.Handler {
	r := prometheus.NewRegistry()
	r.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}), s)
	return promhttp.HandlerFor(r, promhttp.HandlerOpts{})
}

var (
	descBytes     = prometheus.NewDesc("lacuna_registry_bytes_total", "Bytes of blobs read from registries.", nil, nil)
	descFetches   = prometheus.NewDesc("lacuna_fetches_total", "Fetches by what they were for.", []string{"for"}, nil)
	descFailures  = prometheus.NewDesc("lacuna_fetch_failures_total", "Fetches that failed.", nil, nil)
	descLayers    = prometheus.NewDesc("lacuna_layers", "Layers by state.", []string{"state"}, nil)
	descUnserved  = prometheus.NewDesc("lacuna_unserved_layers", "Layers whose readers got zeros or EIO while nobody served them, with containers that still run.", nil, nil)
	descRegistry  = prometheus.NewDesc("lacuna_registries_in_trouble", "Registries whose last answer was none.", nil, nil)
	descKeepers   = prometheus.NewDesc("lacuna_keepers", "Processes that hold the transport besides the daemon.", nil, nil)
	descAnchored  = prometheus.NewDesc("lacuna_anchored", "1 where readers wait even if the daemon and all keepers are killed at once.", nil, nil)
	descAllocated = prometheus.NewDesc("lacuna_cache_bytes", "Disk that layers take.", nil, nil)
	descFallbacks = prometheus.NewDesc("lacuna_fallbacks", "Layers left to containerd's unpack.", nil, nil)
)

// Describe implements prometheus.Collector.
func (s *status) Describe(ch chan<- *prometheus.Desc) { prometheus.DescribeByCollect(s, ch) }

// Collect implements prometheus.Collector.
func (s *status) Collect(ch chan<- prometheus.Metric) {
	st := s.status()
	counter := func(d *prometheus.Desc, v int64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), labels...)
	}
	gauge := func(d *prometheus.Desc, v int, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, float64(v), labels...)
	}
	counter(descBytes, st.BytesFetched)
	counter(descFetches, st.Fetches.Demand, "readers")
	counter(descFetches, st.Fetches.Ahead, "ahead")
	counter(descFailures, st.Fetches.Failed)
	gauge(descLayers, st.Filling, "filling")
	gauge(descLayers, st.Complete, "complete")
	gauge(descLayers, st.Quarantined, "quarantined")
	gauge(descLayers, st.Evicted, "evicted")
	gauge(descLayers, st.Leaving, "leaving")
	gauge(descFallbacks, st.Fallbacks)
	gauge(descUnserved, len(st.Unserved))
	gauge(descRegistry, len(st.Registries))
	gauge(descKeepers, st.Keepers)
	anchored := 0
	if st.Anchored {
		anchored = 1
	}
	gauge(descAnchored, anchored)
	gauge(descAllocated, int(st.Allocated))
}
