package main

import (
	"encoding/json"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/lacuna-snapshotter/lacuna/fetcher/registry"
	"github.com/lacuna-snapshotter/lacuna/internal/statusapi"
	"github.com/lacuna-snapshotter/lacuna/internal/version"
	"github.com/lacuna-snapshotter/lacuna/ondemand"
	"github.com/lacuna-snapshotter/lacuna/snapshot"
)

// status answers lacunactl and metrics collectors.
type status struct {
	started   time.Time
	root      string
	transport string
	layers    *snapshot.Layers
	engine    *ondemand.Engine
	client    *registry.Client
}

func (s *status) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/status", func(w http.ResponseWriter, _ *http.Request) { reply(w, s.status()) })
	mux.HandleFunc("GET /v1/layers", func(w http.ResponseWriter, _ *http.Request) {
		layers, fallbacks := s.layers.Status()
		reply(w, statusapi.Layers{Layers: layers, Fallbacks: fallbacks})
	})
	r := prometheus.NewRegistry()
	r.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}), s)
	mux.Handle("GET /metrics", promhttp.HandlerFor(r, promhttp.HandlerOpts{}))
	return mux
}

func reply(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(v) // the client has gone, if it fails
}

func (s *status) status() statusapi.Status {
	st := statusapi.Status{
		Version: version.String(), Started: s.started.UTC(), Root: s.root, Transport: s.transport,
		BytesFetched: s.client.BytesRead(), Fills: s.engine.Stats(),
	}
	layers, fallbacks := s.layers.Status()
	for _, l := range layers {
		switch l.State {
		case "complete":
			st.Complete++
		case "quarantined":
			st.Quarantined++
		default:
			st.Filling++
		}
	}
	st.Fallbacks = len(fallbacks)
	return st
}

var (
	descBytes     = prometheus.NewDesc("lacuna_registry_bytes_total", "Bytes of blobs read from registries.", nil, nil)
	descFetches   = prometheus.NewDesc("lacuna_fetches_total", "Fetches by what they were for.", []string{"for"}, nil)
	descFailures  = prometheus.NewDesc("lacuna_fetch_failures_total", "Fetches that failed.", nil, nil)
	descLayers    = prometheus.NewDesc("lacuna_layers", "Layers by state.", []string{"state"}, nil)
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
	counter(descFetches, st.Fills.Demand, "readers")
	counter(descFetches, st.Fills.Ahead, "ahead")
	counter(descFailures, st.Fills.Failed)
	gauge(descLayers, st.Filling, "filling")
	gauge(descLayers, st.Complete, "complete")
	gauge(descLayers, st.Quarantined, "quarantined")
	gauge(descFallbacks, st.Fallbacks)
}
