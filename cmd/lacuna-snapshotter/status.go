package main

import (
	"context"
	"encoding/json"
	"net/http"
	"time"

	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"

	"github.com/lacuna-snapshotter/lacuna/fetcher/registry"
	"github.com/lacuna-snapshotter/lacuna/internal/statusapi"
	"github.com/lacuna-snapshotter/lacuna/internal/version"
	"github.com/lacuna-snapshotter/lacuna/ondemand"
	"github.com/lacuna-snapshotter/lacuna/ondemand/hold"
	"github.com/lacuna-snapshotter/lacuna/snapshot/layer"
)

// status answers lacunactl and Prometheus.
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

// registryService is the gRPC health service that says whether registries answer. The
// daemon as a whole goes on serving when they do not.
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

// able returns if layers, transport and engine answer. Where one of them is deadlocked, it
// does not return.
func (s *status) able() {
	s.transport.Needed()
	s.layers.Served()
	s.engine.Stats()
}

func (s *status) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/status", func(w http.ResponseWriter, _ *http.Request) { reply(w, s.status()) })
	mux.HandleFunc("GET /v1/layers", func(w http.ResponseWriter, _ *http.Request) {
		reply(w, layersOf(s.layers.Status()))
	})
	mux.Handle("GET /metrics", metricsHandler(s.status))
	return mux
}

func reply(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(v) // it fails if the client has gone
}

func (s *status) status() statusapi.Status {
	st := statusapi.Status{
		Version: version.String(), Started: s.started.UTC(), Root: s.root,
		Transport: s.transport.Name(), Keepers: s.holders.Keepers(), Anchored: s.holders.Anchored(),
		Registries: registriesOf(s.client.Troubles()), BytesFetched: s.client.BytesRead(), Fetches: statusapi.Fetches(s.engine.Stats()),
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
	unserved, err := s.layers.Unserved(context.Background())
	if err != nil {
		st.Problem = "list of unserved layers: " + err.Error()
	}
	st.Unserved = unservedOf(unserved)
	s.look(&st)
	return st
}

// look adds the state of the node: disk, limits, transports that were not chosen.
func (s *status) look(st *statusapi.Status) {
	st.CacheLimit, st.PassedOver, st.Problems = s.cacheLimit, []string{}, []string{}
	for _, reason := range s.passedOver {
		st.PassedOver = append(st.PassedOver, reason.Error())
	}
	if readOnly(s.root) {
		st.Problems = append(st.Problems, "the root's file system is read-only: reads of holes fail with EIO")
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
