// Package statusapi is what the daemon tells over its status socket: JSON over
// HTTP. lacunactl --json prints the same objects.
package statusapi

import (
	"time"

	"github.com/lacuna-snapshotter/lacuna/fetcher/registry"
	"github.com/lacuna-snapshotter/lacuna/ondemand"
	"github.com/lacuna-snapshotter/lacuna/snapshot"
)

// Status is the daemon at a glance.
type Status struct {
	Version      string         `json:"version"`
	Started      time.Time      `json:"started"`
	Root         string         `json:"root"`
	Transport    string         `json:"transport"`
	Filling      int            `json:"layersFilling"`
	Complete     int            `json:"layersComplete"`
	Quarantined  int            `json:"layersQuarantined"`
	Fallbacks    int            `json:"fallbacks"`
	BytesFetched int64          `json:"bytesFetched"`
	Fills        ondemand.Stats `json:"fetches"`

	Evicted    int                 `json:"layersEvicted"`
	Allocated  int64               `json:"allocated"` // bytes of disk
	Keepers    int                 `json:"keepers"`
	Anchored   bool                `json:"anchored"` // by a process that SIGKILL does not end
	Registries []registry.Trouble  `json:"registriesInTrouble"`
	Unserved   []snapshot.Unserved `json:"unserved"`
	Problem    string              `json:"problem,omitempty"` // of the status itself
}

// Layers lists the layers and those that were left to containerd.
type Layers struct {
	Layers    []snapshot.LayerStatus `json:"layers"`
	Fallbacks []snapshot.Fallback    `json:"fallbacks"`
}
