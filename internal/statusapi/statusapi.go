// Package statusapi is what the daemon tells over its status socket: JSON over
// HTTP. lacunactl --json prints the same objects.
package statusapi

import (
	"time"

	"github.com/lacuna-snapshotter/lacuna/fetcher/registry"
	"github.com/lacuna-snapshotter/lacuna/ondemand"
	"github.com/lacuna-snapshotter/lacuna/snapshot/layer"
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
	Fallbacks    int            `json:"layersFallback"` // left to containerd; Layers lists them
	BytesFetched int64          `json:"bytesFetched"`
	Fills        ondemand.Stats `json:"fetches"`

	Evicted    int                `json:"layersEvicted"`
	Leaving    int                `json:"layersLeaving"`
	Allocated  int64              `json:"allocated"` // bytes of disk
	Keepers    int                `json:"keepers"`
	Anchored   bool               `json:"anchored"` // by a process that SIGKILL does not end
	Registries []registry.Trouble `json:"registriesInTrouble"`
	Unserved   []layer.Unserved   `json:"unserved"`
	Disk       Disk               `json:"disk"`
	CacheLimit int64              `json:"cacheLimit"`           // bytes of disk that layers may take, 0 is no limit
	PassedOver []string           `json:"transportsPassedOver"` // why each better one was not chosen; known to the daemon that chose
	Problems   []string           `json:"problems"`             // that somebody should see to
	Problem    string             `json:"problem,omitempty"`    // of the status itself
}

// Disk is the file system that the root is on.
type Disk struct {
	FileSystem string `json:"fileSystem"`
	Size       int64  `json:"size"` // bytes
	Free       int64  `json:"free"`
}

// Layers lists the layers and those that were left to containerd.
type Layers struct {
	Layers    []layer.Status   `json:"layers"`
	Fallbacks []layer.Fallback `json:"fallbacks"`
}
