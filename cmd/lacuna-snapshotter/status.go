package main

import (
	"context"
	"encoding/json"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"

	"github.com/lacuna-snapshotter/lacuna/fetcher/registry"
	"github.com/lacuna-snapshotter/lacuna/internal/statusapi"
	"github.com/lacuna-snapshotter/lacuna/internal/version"
	"github.com/lacuna-snapshotter/lacuna/ondemand"
	"github.com/lacuna-snapshotter/lacuna/ondemand/hold"
	"github.com/lacuna-snapshotter/lacuna/snapshot/layer"
)

// status answers lacunactl and metrics collectors.
type status struct {
	started    time.Time
	root       string
	transport  ondemand.Transport
	passedOver []error // transports, with reasons
	holders    *hold.Holders
	layers     *layer.Set
	engine     *ondemand.Engine
	client     *registry.Client
	cacheLimit int64
}

// registryService is the name under which gRPC health tells whether registries
// answer. The daemon as a whole serves on meanwhile.
const registryService = "lacuna.registry"

// report keeps gRPC health up to date.
func (s *status) report(ctx context.Context, h *health.Server) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		state := grpc_health_v1.HealthCheckResponse_SERVING
		if len(s.client.Troubles()) > 0 {
			state = grpc_health_v1.HealthCheckResponse_NOT_SERVING
		}
		h.SetServingStatus(registryService, state)
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// able reports whether layers and transport still come to answer: one that is locked
// up does not return.
func (s *status) able() {
	s.transport.Needed()
	s.layers.Served()
	s.engine.Stats()
}

func (s *status) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/status", func(w http.ResponseWriter, _ *http.Request) { reply(w, s.status()) })
	mux.HandleFunc("GET /v1/layers", func(w http.ResponseWriter, _ *http.Request) {
		layers, fallbacks := s.layers.Status()
		if fallbacks == nil {
			fallbacks = []layer.Fallback{}
		}
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
		Version: version.String(), Started: s.started.UTC(), Root: s.root,
		Transport: s.transport.Name(), Keepers: s.holders.Keepers(), Anchored: s.holders.Anchored(), Registries: s.client.Troubles(),
		BytesFetched: s.client.BytesRead(), Fills: s.engine.Stats(),
	}
	layers, fallbacks := s.layers.Status()
	for _, l := range layers {
		switch l.State {
		case layer.Complete:
			st.Complete++
		case layer.Quarantined:
			st.Quarantined++
		case layer.Evicted:
			st.Evicted++
		case layer.Leaving:
			st.Leaving++
		default:
			st.Filling++
		}
	}
	st.Fallbacks = len(fallbacks)
	for _, l := range layers {
		st.Allocated += l.Allocated
	}
	var err error
	if st.Unserved, err = s.layers.Unserved(context.Background()); err != nil {
		st.Problem = "list of layers that were not served: " + err.Error()
	}
	if st.Unserved == nil {
		st.Unserved = []layer.Unserved{}
	}
	s.look(&st)
	return st
}

// look adds what the daemon sees around it.
func (s *status) look(st *statusapi.Status) {
	st.CacheLimit, st.PassedOver, st.Problems = s.cacheLimit, []string{}, []string{}
	for _, reason := range s.passedOver {
		st.PassedOver = append(st.PassedOver, reason.Error())
	}
	if readOnly(s.root) {
		st.Problems = append(st.Problems, "the root's file system is read-only: what is not there yet cannot be read, containers get EIO")
	}
	d, err := diskOf(s.root)
	if err != nil {
		st.Problems = append(st.Problems, err.Error())
		return
	}
	st.Disk = statusapi.Disk{FileSystem: d.kind, Size: d.size, Free: d.free}
	if problem := d.problem(); problem != "" {
		st.Problems = append(st.Problems, problem)
	}
}

var (
	descBytes     = prometheus.NewDesc("lacuna_registry_bytes_total", "Bytes of blobs read from registries.", nil, nil)
	descFetches   = prometheus.NewDesc("lacuna_fetches_total", "Fetches by what they were for: readers, or ahead of them.", []string{"for"}, nil)
	descFailures  = prometheus.NewDesc("lacuna_fetch_failures_total", "Fetches that failed.", nil, nil)
	descLayers    = prometheus.NewDesc("lacuna_layers", "Layers by state.", []string{"state"}, nil)
	descUnserved  = prometheus.NewDesc("lacuna_unserved_layers", "Layers that were not served for some time, so that readers got zeros or EIO, with containers that still run.", nil, nil)
	descRegistry  = prometheus.NewDesc("lacuna_registries_in_trouble", "Registries whose last request failed.", nil, nil)
	descKeepers   = prometheus.NewDesc("lacuna_keepers", "Keeper processes, which hold the transport's descriptors besides the daemon.", nil, nil)
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
	counter(descFetches, st.Fills.Demand, "readers")
	counter(descFetches, st.Fills.Ahead, "ahead")
	counter(descFailures, st.Fills.Failed)
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
