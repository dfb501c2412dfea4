// Package statusapi is the protocol of the daemon's status socket: JSON over HTTP. lacunactl --json prints the same objects. Its types are its own, so that a
// client does not link the daemon, and a change inside the daemon does not change
// what clients read.
package statusapi

import (
	"time"

	"github.com/opencontainers/go-digest"
)

// Status is the state of the daemon.
type Status struct {
	Version      string    `json:"version"`
	Started      time.Time `json:"started"`
	Root         string    `json:"root"`
	Transport    string    `json:"transport"`
	Filling      int       `json:"layersFilling"`
	Complete     int       `json:"layersComplete"`
	Quarantined  int       `json:"layersQuarantined"`
	Fallbacks    int       `json:"layersFallback"` // left to containerd; Layers lists them
	BytesFetched int64     `json:"bytesFetched"`
	Fetches      Fetches   `json:"fetches"`

	Evicted    int        `json:"layersEvicted"`
	Leaving    int        `json:"layersLeaving"`
	Allocated  int64      `json:"allocated"` // bytes of disk
	Keepers    int        `json:"keepers"`
	Anchored   bool       `json:"anchored"` // by a process that SIGKILL does not end
	Registries []Registry `json:"registriesInTrouble"`
	Unserved   []Unserved `json:"unserved"`
	Disk       Disk       `json:"disk"`
	CacheLimit int64      `json:"cacheLimit"`           // bytes of disk that layers may take, 0 is no limit
	PassedOver []string   `json:"transportsPassedOver"` // why each better one was not chosen; known to the daemon that chose
	Problems   []string   `json:"problems"`             // that an administrator should look at
	Problem    string     `json:"problem,omitempty"`    // of the status itself
}

// Fetches counts fetches since the daemon's start.
type Fetches struct {
	Demand int64 `json:"forReaders"`
	Ahead  int64 `json:"ahead"`
	Failed int64 `json:"failed"`
}

// Registry is a registry that fails.
type Registry struct {
	Registry string    `json:"registry"` // its host, and the repository where only that one is refused
	Since    time.Time `json:"since"`
	Failures int       `json:"failures"` // requests since then, all of which failed
	Error    string    `json:"error"`    // of the last one
}

// Unserved is a layer that no daemon and no holder served for some time, with
// containers that have run since then.
type Unserved struct {
	Layer     digest.Digest `json:"layer"`
	Transport string        `json:"transport"`
	Found     time.Time     `json:"found"`     // when the next daemon started
	Reads     string        `json:"reads"`     // what a hole read as: "zeros" or "EIO"
	Snapshots []string      `json:"snapshots"` // containerd's keys, which end in the container's ID
}

// Disk is the file system that the root is on.
type Disk struct {
	FileSystem string `json:"fileSystem"`
	Size       int64  `json:"size"` // bytes
	Free       int64  `json:"free"`
}

// Layers lists the layers and those that were left to containerd.
type Layers struct {
	Layers    []Layer    `json:"layers"`
	Fallbacks []Fallback `json:"fallbacks"`
}

// Layer is a layer that the daemon has.
type Layer struct {
	Layer      digest.Digest `json:"layer"`
	Ref        string        `json:"image"`
	State      string        `json:"state"` // absent, ready, filling, complete, leaving, evicted or quarantined
	Reason     string        `json:"reason,omitempty"`
	Mountpoint string        `json:"mountpoint"`
	BlobSize   int64         `json:"blobSize"` // bytes of files
	Filled     int64         `json:"filled"`   // bytes of these on the node
	Packed     int64         `json:"layerSize"`
	Allocated  int64         `json:"allocated"` // bytes of disk
}

// Fallback says why a layer was left to containerd.
type Fallback struct {
	Layer  digest.Digest `json:"layer"`
	Ref    string        `json:"image"`
	Time   time.Time     `json:"time"`
	Reason string        `json:"reason"`
}
